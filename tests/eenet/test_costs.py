"""MACs against hand counts and against the eager kernels."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from eenet.backbones import StagedBackbone, TimmBackbone
from eenet.backbones.image import ImageBackbone
from eenet.costs import count_macs, count_operators
from eenet.counting import count_costs
from eenet.errors import UserError
from eenet.inference_modules import MLPHead
from eenet.network import EarlyExitNetwork
from eenet.policies import FixedExit
from eenet.profile import CostProfile, mean_cost
from eenet.quantization.network import QuantizedNetwork
from eenet.reporting.table import results_table
from tests._dummies import make_network, make_resnet, make_vit

B, N, D, H = 2, 7, 16, 32
TOKENS = torch.zeros(B, N, D)
ATTENTION = B * N * 4 * D * D + 2 * B * N * N * D
LAYER = ATTENTION + 2 * B * N * D * H


class Layered(ImageBackbone):
    """Three layers of any kind on the rows of an image."""

    def __init__(self, make: Callable[[], nn.Module], run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.num_stages, self.num_classes, self.feature_dims, self.input_shape = 3, 5, [D] * 3, (1, N, D)
        self.layers, self.head, self.run = nn.ModuleList(make() for _ in range(3)), nn.Linear(D, 5), run

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def embed(self, inputs: Tensor) -> Tensor:
        return inputs[:, 0]

    def run_stage(self, i: int, state: Tensor) -> Tensor:
        return self.run(self.layers[i], state)

    def features(self, i: int, state: Tensor) -> Tensor:
        return state.mean(1)

    def classify(self, state: Tensor) -> Tensor:
        return self.head(state.mean(1))


def test_a_transformer_block_by_hand() -> None:
    dim, tokens, hidden = 16, 5, 64
    linear = tokens * (3 * dim * dim + dim * dim + 2 * dim * hidden)
    attention = 2 * tokens * tokens * dim
    costs = make_network().costs
    assert costs.stages == (linear + attention,) * 4
    assert costs.embed == 4 * dim * 4 * 4
    assert costs.classifier == dim * 10
    assert costs.heads == (dim * 10,) * 3
    assert costs.gates == (4,) * 3


def test_residual_blocks_by_hand() -> None:
    costs = EarlyExitNetwork(make_resnet()).costs
    narrowing = 9 * 64 * 4 * 64 + 9 * 4 * 4 * 64 + 64 * 4 * 64
    halving = 9 * 4 * 8 * 16 + 9 * 8 * 8 * 16 + 4 * 8 * 16
    assert costs.embed == 9 * 1 * 64 * 64
    assert costs.stages[:2] == (narrowing, halving)


def test_fused_attention_counts_like_the_eager_kernel() -> None:
    fused = EarlyExitNetwork(make_vit()).costs
    set_fused_attn(False)
    try:
        eager = EarlyExitNetwork(make_vit()).costs
    finally:
        set_fused_attn(True)
    assert fused == eager


@pytest.mark.parametrize("value_dim", [8, 12])
def test_the_attention_formula_against_two_matrix_products(value_dim: int) -> None:
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, value_dim)

    def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    assert count_macs(F.scaled_dot_product_attention, query, key, value)[0] == count_macs(eager, query, key, value)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("module", "arguments", "macs"),
    [
        (nn.TransformerEncoderLayer(D, 2, H, batch_first=True), [TOKENS], LAYER),
        (nn.TransformerEncoderLayer(D, 2, H, norm_first=True), [TOKENS.transpose(0, 1)], LAYER),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, H, batch_first=True), 2, enable_nested_tensor=False),
            [TOKENS],
            2 * LAYER,
        ),
        (nn.MultiheadAttention(D, 2, batch_first=True), [TOKENS] * 3, ATTENTION),
        (nn.LSTM(D, 8, batch_first=True), [TOKENS], B * N * 4 * 8 * (D + 8)),
        (nn.LSTM(D, 8, 2, batch_first=True, bidirectional=True), [TOKENS], 2 * 2 * B * N * 4 * 8 * (D + 8)),
        (nn.LSTM(D, 8, proj_size=4), [TOKENS], B * N * (4 * 8 * (D + 4) + 8 * 4)),
        (nn.GRU(D, 8, batch_first=True), [TOKENS], B * N * 3 * 8 * (D + 8)),
        (nn.RNN(D, 8, batch_first=True), [TOKENS], B * N * 8 * (D + 8)),
        (nn.LSTMCell(D, 8), [TOKENS[:, 0]], B * 4 * 8 * (D + 8)),
        (nn.Bilinear(D, D, 5), [TOKENS, TOKENS], B * N * 5 * (D * D + D)),
        (nn.Conv2d(4, 8, 3, groups=2), [torch.zeros(B, 4, 6, 6)], B * 4 * 4 * 8 * 2 * 9),
        (nn.ConvTranspose2d(4, 8, 3, stride=2, groups=2), [torch.zeros(B, 4, 6, 6)], B * 6 * 6 * 4 * 4 * 9),
        (nn.Conv1d(4, 8, 3, padding="same"), [torch.zeros(4, N)], N * 8 * 4 * 3),
        (nn.Linear(D, 5), [TOKENS[0, 0]], 5 * D),
        (nn.Embedding(N, D), [torch.zeros(B, N, dtype=torch.long)], 0),
        (nn.LayerNorm(D), [TOKENS], 0),
    ],
)
def test_layers_by_hand(module: nn.Module, arguments: list[Tensor], macs: int, training: bool, dtype: Any) -> None:
    module.to(dtype).train(training)
    values = [value.to(dtype) if value.is_floating_point() else value for value in arguments]
    assert count_operators(module, *values)[::2] == (macs, ())


A, V, W = torch.zeros(5, D), torch.zeros(D), torch.zeros(D, 5)


@pytest.mark.parametrize(
    ("function", "arguments", "macs"),
    [
        (torch.matmul, [A, V], 5 * D),
        (torch.matmul, [TOKENS, V], B * N * D),
        (torch.matmul, [V, W], 5 * D),
        (torch.matmul, [V, V], D),
        (torch.vdot, [V, V], D),
        (torch.matmul, [TOKENS, W], B * N * D * 5),
        (torch.addmv, [torch.zeros(5), A, V], 5 * D),
        (torch.addbmm, [torch.zeros(N, N), TOKENS, TOKENS.mT], B * N * N * D),
        (torch.baddbmm, [torch.zeros(B, N, N), TOKENS, TOKENS.mT], B * N * N * D),
        (torch.einsum, ["bnd,dk->bnk", TOKENS, W], B * N * D * 5),
        (torch.einsum, ["bnd,d->bn", TOKENS, V], B * N * D),
        (torch.tensordot, [TOKENS, W, 1], B * N * D * 5),
        (torch._int_mm, [torch.zeros(32, 16, dtype=torch.int8), torch.zeros(16, 8, dtype=torch.int8)], 32 * 16 * 8),
        (torch._addmm_activation, [torch.zeros(5), TOKENS[0], W], N * D * 5),
        (torch.mul, [TOKENS, V], 0),
        (torch.outer, [V, V], 0),
        (lambda x, weight: (x.unsqueeze(-2) * weight).sum(-1), [TOKENS, nn.Parameter(A)], B * N * D * 5),
        (lambda x, weight: (x.unsqueeze(-2) * weight.unsqueeze(0)).mean(-1), [TOKENS, nn.Parameter(V)], B * N * D),
        (lambda x, weight: (x * weight).relu().sum(-1), [TOKENS, nn.Parameter(V)], 0),
        (torch.cat, [[TOKENS, TOKENS], 1], 0),
    ],
)
def test_products_by_hand(function: Callable, arguments: list[Any], macs: int) -> None:
    assert count_operators(function, *arguments)[::2] == (macs, ())


def test_attention_with_fewer_keys_by_hand() -> None:
    query, key = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 7, 8)
    counted = count_macs(lambda: F.scaled_dot_product_attention(query, key, key, enable_gqa=True))
    assert counted[0] == 2 * 2 * 4 * 5 * 7 * 8


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("make", "run", "macs"),
    [
        (lambda: nn.TransformerEncoderLayer(D, 2, H, batch_first=True), lambda layer, x: layer(x), LAYER // B),
        (lambda: nn.LSTM(D, D, batch_first=True), lambda layer, x: layer(x)[0], N * 8 * D * D),
        (lambda: nn.MultiheadAttention(D, 2, batch_first=True), lambda layer, x: layer(x, x, x)[0], ATTENTION // B),
    ],
)
def test_stages_of_fused_layers(make: Callable, run: Callable, macs: int, frozen: bool) -> None:
    network = EarlyExitNetwork(Layered(make, run).requires_grad_(not frozen))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        costs = network.costs
    assert costs.stages == (macs,) * 3
    assert costs.full == 3 * macs + 5 * D
    assert costs.fractions()[0] < 0.5


def test_counting_leaves_the_kernels_and_gradients_alone() -> None:
    libraries = torch.backends.mkldnn, torch.backends.cudnn
    before = [library.enabled for library in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with pytest.raises(RuntimeError, match="shapes"):
            count_macs(torch.matmul, A, A)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    count_macs(torch.matmul, A, W)
    assert torch.backends.mha.get_fastpath_enabled()
    assert [library.enabled for library in libraries] == before
    assert torch.is_grad_enabled()


def test_an_operator_without_a_formula_is_said() -> None:
    def deformed(layer: nn.Module, x: Tensor) -> Tensor:
        maps = x.mT.unsqueeze(2)
        return deform_conv2d(maps, x.new_zeros(len(x), 2, 1, N), layer.weight).squeeze(2).mT

    with pytest.warns(UserWarning, match=r"stage 0: torchvision\.deform_conv2d, stage 1: .* too low"):
        costs = EarlyExitNetwork(Layered(lambda: nn.Conv2d(D, D, 1, bias=False), deformed)).costs
    assert costs.uncounted == tuple(f"stage {stage}: torchvision.deform_conv2d" for stage in range(3))
    assert CostProfile.from_dict(costs.to_dict()) == costs
    head = {"method": "", "data": "", "split": "test", "seed": 0, "exits": [], "operating_points": []}
    assert "stage 2: torchvision.deform_conv2d" in str(results_table({**head, "costs": costs.to_dict()}).caption)
    assert results_table({**head, "costs": make_network().costs.to_dict()}).caption is None


def test_bitops_of_fused_layers_are_those_of_their_macs() -> None:
    make = partial(nn.TransformerEncoderLayer, D, 2, H, batch_first=True)
    network = QuantizedNetwork(Layered(make, lambda layer, x: layer(x)).eval(), widths=[32, 8])
    assert [part.macs for part in network.stage_layers] == [2 * N * D * H] * 3
    assert [part.float_macs for part in network.stage_layers] == [ATTENTION // B] * 3
    assert network.costs.columns["bitops"].full == 1024 * network.costs.full


def test_a_model_that_counts_nothing_is_refused() -> None:
    backbone = Layered(lambda: nn.LayerNorm(D), lambda norm, x: norm(x))
    backbone.head, backbone.num_classes = nn.Identity(), D
    with pytest.raises(UserError, match=r"network.backbone = 'Layered': counts 0 MACs"):
        _ = EarlyExitNetwork(backbone, exits=[]).costs


def test_a_stage_whose_weights_count_nothing_is_said() -> None:
    def by_hand(layer: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([(x * row.exp()).sum(-1) for row in layer.weight], dim=-1)

    with pytest.warns(UserWarning, match="stage 2: its weights"):
        costs = EarlyExitNetwork(Layered(lambda: nn.Linear(D, D, bias=False), by_hand), exits=[1]).costs
    assert costs.stages == (0, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EarlyExitNetwork(Layered(lambda: nn.LayerNorm(D), lambda norm, x: norm(x))).costs.uncounted == ()


@pytest.mark.parametrize("frozen", [True, False])
def test_pooling_counts_in_the_head_that_reads_it(frozen: bool) -> None:
    """Keys and values of 4 tokens, one query, its products with them, a projection and a perceptron."""
    vit = make_vit(global_pool="map", class_token=False).requires_grad_(not frozen)
    dim, tokens = 16, 4
    pooling = dim * dim * (2 * tokens + 1 + 1 + 8) + 2 * tokens * dim
    costs = EarlyExitNetwork(vit).costs
    assert costs.heads == (pooling + dim * 10,) * 3
    assert costs.classifier == pooling + dim * 10
    assert costs.full == count_macs(vit.eval(), vit.example_input())[0] == count_macs(vit.model, vit.example_input())[0]


@pytest.mark.parametrize("exit", range(4))
@pytest.mark.parametrize("boosted", [False, True])
def test_routing_runs_what_it_says_it_costs(boosted: bool, exit: int) -> None:
    vit = make_vit(global_pool="map", class_token=False)
    network = EarlyExitNetwork(vit, inference_module=MLPHead, boosted=boosted).eval()
    expected = network.costs.cumulative[exit]
    macs, routed = count_macs(network.route, vit.example_input(), FixedExit(exit))
    assert macs == routed.macs.item() == expected


def test_routing_over_paths_runs_what_it_says_it_costs() -> None:
    vit = make_vit(global_pool="map", class_token=False).eval()
    network = QuantizedNetwork(vit, [0, 2], widths=[32, 8]).eval()
    network.calibrate([torch.randn(4, 1, 8, 8)])
    exits = set()
    for tradeoff in (0.0, 0.5, 5.0):
        for width in (32, 8):
            policy = network.policy(width, tradeoff)
            macs, routed = count_macs(network.route, torch.randn(1, 1, 8, 8), policy)
            assert macs == routed.macs.item()
            exits.add(routed.exits.item())
    assert len(exits) > 1


def test_a_network_of_lstms_by_hand() -> None:
    """A convolution to 4 tokens; two LSTMs of two directions; a projection; a perceptron."""
    overrides = {"layers": [1] * 4, "embed_dims": [16] * 4, "hidden_sizes": [4] * 4, "img_size": 32}
    backbone = TimmBackbone("sequencer2d_s", 10, 32, overrides=overrides)
    costs = EarlyExitNetwork(backbone).costs
    assert costs.stages[1] == 4 * (4 * 16 * 16 + 2 * 2 * 4 * 4 * (16 + 4) + 16 * 16 + 2 * 16 * 48)
    assert costs.full == count_macs(backbone.model.eval(), backbone.example_input())[0]


def test_parts_add_up_to_the_whole_model(backbone: StagedBackbone) -> None:
    whole, _ = count_macs(backbone.eval(), backbone.example_input())
    assert EarlyExitNetwork(backbone).costs.full == whole


def test_counting_leaves_the_training_mode_alone() -> None:
    network = make_network().train()
    network.backbone.eval()
    count_costs(network)
    assert network.training
    assert not network.backbone.training


def test_profile_arithmetic() -> None:
    profile = CostProfile(embed=10, stages=(20, 30, 40), classifier=5, heads=(1, 2), gates=(3, 4), exit_stages=(0, 1))
    assert profile.full == 105
    assert profile.cumulative == [34, 70, 115]
    assert profile.static == [31, 62, 105]
    assert profile.stages_run == [1, 2, 3]
    assert profile.normalised().tolist() == pytest.approx([34 / 115, 70 / 115, 1])
    assert profile.fractions().tolist() == pytest.approx([34 / 105, 70 / 105, 115 / 105])
    assert mean_cost([0.5, 0.25, 0.25], profile.cumulative) == pytest.approx(17 + 17.5 + 28.75)
    assert CostProfile.from_dict(profile.to_dict()) == profile


def test_mean_cost_refuses_another_number_of_exits() -> None:
    with pytest.raises(UserError, match="3 exits"):
        mean_cost([0.5, 0.5], [1, 2, 3])
