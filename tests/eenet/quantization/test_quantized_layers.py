"""Layers: simulated against integers by hand, native against simulated, segments of every family."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eenet.backbones import Bert, CifarResNet, StagedBackbone
from eenet.costs import count_macs
from eenet.errors import UserError
from eenet.quantization import QuantizedBackbone
from eenet.quantization.grid import activation_grid, quantize_weight, weight_codes, weight_scales
from eenet.quantization.layers import NativeConv2d, NativeLinear, SimulatedLayer, Weights, native_layer
from eenet.quantization.ranges import observe
from eenet.quantization.segments import replace_layers, stage_layers
from tests._dummies import make_resnet, make_vit

TOLERANCE = 1e-5
"""Relative to the largest output: native sums are exact integers, simulated ones are rounded floats."""


def weights_of(layer: Any, width: int) -> Weights:
    """Codes of a layer that was rounded to the nearest, and shifts of its channels."""
    codes = weight_codes(layer.weight, width).to(torch.int8)
    return Weights(codes, weight_scales(layer.weight, width), torch.linspace(-0.1, 0.1, len(codes)))


def integers(layer: nn.Linear, values: Tensor, low: float, high: float, width: int) -> np.ndarray:
    """A quantized linear layer in NumPy, with its own grid and int64 sums."""
    levels, limit = 2**width - 1, 2 ** (width - 1) - 1
    weight, rows = layer.weight.detach().double().numpy(), values.double().numpy()
    step = (high - low) / levels
    zero = round(-low / step)
    q = np.clip(np.rint(rows / step) + zero, 0, levels).astype(np.int64) - zero
    scales = np.abs(weight).max(1) / limit
    w = np.clip(np.rint(weight / scales[:, None]), -limit, limit).astype(np.int64)
    shifts = np.linspace(-0.1, 0.1, len(w))
    return (q @ w.T) * step * scales + layer.bias.detach().double().numpy() + shifts


@pytest.mark.parametrize("width", [8, 6, 4])
@torch.no_grad()
def test_a_linear_layer_agrees_with_integers_by_hand(width: int) -> None:
    layer, values = nn.Linear(40, 7), torch.randn(50, 40)
    found = SimulatedLayer(layer, weights_of(layer, width), activation_grid(-2.0, 3.1, width))(values)
    np.testing.assert_allclose(found.numpy(), integers(layer, values, -2.0, 3.1, width), atol=1e-5)


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 2)},
]


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
@torch.no_grad()
def test_native_convolutions_agree_with_simulated_ones(arguments: dict[str, Any], width: int) -> None:
    layer, values = nn.Conv2d(6, 9, **arguments), torch.randn(4, 6, 11, 12)
    grid = activation_grid(values.min().item(), values.max().item(), width)
    native = native_layer(layer, weights_of(layer, width), grid)
    assert isinstance(native, NativeConv2d)
    expected = SimulatedLayer(layer, weights_of(layer, width), grid)(values)
    assert (native(values) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("width", [8, 6, 4, 2])
@pytest.mark.parametrize("shape", [(1, 64), (3, 17, 64)])
@torch.no_grad()
def test_native_linear_layers_agree_with_simulated_ones(shape: tuple[int, ...], width: int) -> None:
    layer, values = nn.Linear(64, 33), torch.randn(shape)
    grid = activation_grid(-2.0, 2.5, width)
    native = native_layer(layer, weights_of(layer, width), grid)
    assert isinstance(native, NativeLinear)
    assert native.codes.dtype == torch.int8
    expected = SimulatedLayer(layer, weights_of(layer, width), grid)(values)
    assert (native(values) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_layers_without_a_kernel_have_no_native_form() -> None:
    grid = activation_grid(-1, 1, 8)
    layers = [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding="same")]
    assert [native_layer(layer, weights_of(layer, 8), grid) for layer in [*layers, nn.Conv1d(4, 4, 3)]] == [None] * 4


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_native_layers_with_ranges_of_each_row_agree_with_simulated_ones(kind: torch.dtype, width: int) -> None:
    layer, values = nn.Linear(64, 33).to(kind), (torch.randn(3, 17, 64) * torch.rand(3, 17, 1)).to(kind)
    weights = weights_of(layer, width)
    expected = SimulatedLayer(layer, weights, width)(values)
    native = NativeLinear(layer, weights, width)(values)
    assert native.dtype == expected.dtype == kind
    tolerance = TOLERANCE if kind == torch.float32 else 2**-7
    assert (native - expected).abs().max() <= tolerance * expected.abs().max()
    plain = torch.func.functional_call(layer, {"weight": quantize_weight(layer.weight, width)}, (values,))
    shifts = torch.linspace(-0.1, 0.1, 33)
    assert (expected - plain - shifts).abs().max() < 4 * 2**-width * plain.abs().max()


@torch.no_grad()
def test_native_layers_refuse_what_is_no_number() -> None:
    for layer, shape in ((nn.Linear(4, 4), (2, 4)), (nn.Conv2d(4, 4, 1), (2, 4, 3, 3))):
        values = torch.randn(shape)
        values[0, 0] = torch.nan
        native = native_layer(layer, weights_of(layer, 8), activation_grid(-1, 1, 8))
        assert native is not None
        with pytest.raises(UserError, match="not a number"):
            native(values)
        assert SimulatedLayer(layer, weights_of(layer, 8), activation_grid(-1, 1, 8))(values).isnan().any()


def make_bert() -> Bert:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return Bert(num_classes=3, overrides={**sizes, "vocab_size": 50, "max_position_embeddings": 32}, example_tokens=8)


@pytest.mark.parametrize("make", [make_vit, make_resnet, make_bert, lambda: CifarResNet(8, 10, 8)])
@torch.no_grad()
def test_every_family_finds_its_layers_and_all_macs(make: Any) -> None:
    backbone: StagedBackbone = make().eval()
    stages = stage_layers(backbone)
    state = backbone.embed(backbone.example_input())
    for number, stage in enumerate(stages):
        macs, state = count_macs(backbone.run_stage, number, state)
        assert stage.macs + stage.attention_macs + stage.float_macs == macs
        assert stage.float_macs == 0
        modules = [backbone.get_submodule(name) for name in stage.layers]
        assert modules
        assert all(isinstance(module, nn.Linear | nn.Conv2d) for module in modules)
        others = [backbone.get_submodule(name) for name in stage.float_layers]
        assert all(isinstance(module, nn.LayerNorm | nn.BatchNorm2d) for module in others)
    names = [name for stage in stages for name in stage.layers]
    assert len(names) == len(set(names))


def test_the_layers_of_a_transformer_block_by_hand() -> None:
    stage = stage_layers(make_vit())[0]
    tokens, dim = 5, 16  # four patches of 4 pixels and the class token
    assert [name.split("blocks.0.")[1] for name in stage.layers] == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert stage.macs == tokens * 12 * dim**2
    assert stage.attention_macs == 2 * tokens**2 * dim  # scores and weighted values
    assert stage.layer_macs == tuple(tokens * dim**2 * share for share in (3, 1, 4, 4))
    widths = stage.bitops(3, 4, {"model.blocks.0.attn.qkv": 8})
    assert widths == tokens * dim**2 * (3 * 64 + 9 * 12) + 16 * 2 * tokens**2 * dim


def test_a_layer_that_cannot_be_quantized_is_listed_and_counted() -> None:
    backbone = make_vit()
    backbone.model.blocks[1].mlp.fc1 = Odd(backbone.model.blocks[1].mlp.fc1)
    plain, stage = stage_layers(make_vit())[1], stage_layers(backbone)[1]
    assert "model.blocks.1.mlp.fc1" in stage.float_layers
    assert "model.blocks.1.mlp.fc1" not in stage.layers
    assert stage.float_macs - plain.float_macs == plain.macs - stage.macs == 5 * 4 * 16**2


class Odd(nn.Module):
    """A product that is no linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, values: Tensor) -> Tensor:
        return values @ self.weight.T + self.bias


@torch.no_grad()
def test_a_twin_shares_weights_and_leaves_the_original_alone() -> None:
    backbone = make_vit().eval()
    inputs = torch.randn(3, 1, 8, 8)
    before = backbone(inputs)
    names = stage_layers(backbone)[0].layers
    layers = {}
    for name in names:
        layer = backbone.get_submodule(name)
        weights = weights_of(layer, 4)._replace(shifts=torch.zeros(1))
        layers[name] = SimulatedLayer(layer, weights, activation_grid(-3, 3, 4))
    twin = replace_layers(backbone, layers)
    assert torch.equal(backbone(inputs), before)
    assert (twin(inputs) - before).abs().max() > 1e-3
    assert twin.model.blocks[1] is backbone.model.blocks[1]
    own = {weight.data_ptr() for weight in backbone.parameters()}
    assert {weight.data_ptr() for weight in twin.parameters()} == own
    by_hand = make_vit().eval()
    by_hand.load_state_dict(backbone.state_dict())
    for name in names:
        layer = by_hand.get_submodule(name)
        layer.weight.copy_(quantize_weight(layer.weight, 4))  # type: ignore[operator, arg-type]
        layer.register_forward_pre_hook(
            lambda _, args: torch.fake_quantize_per_tensor_affine(args[0], 6 / 15, 0, -8, 7)
        )
    torch.testing.assert_close(twin(inputs), by_hand(inputs))


@torch.no_grad()
def test_ranges_cover_every_call_and_have_the_least_squared_error() -> None:
    backbone = make_vit().eval()
    qkv = backbone.get_submodule("model.blocks.0.attn.qkv")
    batches = [torch.randn(4, 1, 8, 8), 3 * torch.randn(4, 1, 8, 8)]
    run = backbone.run_stage

    def twice(i: int, state: Tensor) -> Tensor:
        qkv(5 * state)  # a layer that is called twice, the larger input first
        return run(i, state)

    backbone.run_stage = twice  # type: ignore[method-assign, assignment]
    seen: list[Tensor] = []
    handle = qkv.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten()))
    (found,) = observe(backbone, ["model.blocks.0.attn.qkv"], batches)
    handle.remove()
    values = torch.cat(seen)
    assert found.extremes == (values.min().item(), values.max().item())
    for width in (8, 4):
        low, high = found.range(width)
        errors = []
        for share in torch.linspace(0.1, 1, 200).tolist():
            grid = activation_grid(share * found.extremes[0], share * found.extremes[1], width)
            rounded = torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, grid.low, grid.high)
            errors.append((rounded - values).square().mean().item())
        own = activation_grid(low, high, width)
        rounded = torch.fake_quantize_per_tensor_affine(values, own.scale, own.zero_point, own.low, own.high)
        assert (rounded - values).square().mean().item() < 1.2 * min(errors)


@torch.no_grad()
def test_a_layer_that_is_called_twice_is_billed_twice() -> None:
    backbone = make_vit().eval()
    mlp = backbone.model.blocks[1].mlp
    mlp.fc1 = nn.Linear(16, 16)
    mlp.fc2 = mlp.fc1  # one layer in both places
    stage = stage_layers(backbone)[1]
    assert stage.layer_macs == tuple(5 * 16**2 * share for share in (3, 1, 2))
    assert stage.float_macs == 0


@torch.no_grad()
def test_bfloat16_weights_are_quantized() -> None:
    rows = torch.randn(32, 1, 8, 8)
    plain = make_vit(embed_dim=32).eval()
    half = make_vit(embed_dim=32).eval()
    half.load_state_dict(plain.state_dict())
    found = QuantizedBackbone(half.bfloat16(), 8).eval()
    found.calibrate([rows.bfloat16()])
    assert found.scales_8.dtype == torch.float32
    simulated, wanted = found(rows.bfloat16()).float(), plain(rows)
    assert (simulated - wanted).abs().mean() < 0.05 * wanted.std()
    found.native = True
    assert (found(rows.bfloat16()).float() - simulated).abs().mean() < 0.02 * wanted.std()
    cast = QuantizedBackbone(plain, 4).eval()
    cast.calibrate([rows])
    scales = cast.scales_4.clone()
    assert torch.equal(cast.bfloat16().scales_4, scales)


def nan_weights() -> StagedBackbone:
    backbone = make_vit()
    with torch.no_grad():
        backbone.model.blocks[0].attn.qkv.weight[0, 0] = torch.nan
    return backbone


@pytest.mark.parametrize(
    ("backbone", "batches", "message"),
    [
        (make_vit, [], "calibration_batches = 0: activations need at least one batch"),
        (make_vit, [torch.zeros(4, 1, 8, 8), torch.zeros(2, 1, 8, 8)], "constant': all samples are the same"),
        (make_vit, [torch.full((4, 1, 8, 8), torch.nan)], "no finite numbers"),
        (make_vit, [torch.zeros(0, 1, 8, 8)], "calibration_batches = 0: activations need at least one batch"),
        (nan_weights, [torch.randn(4, 1, 8, 8)], r"attn\.qkv': has weights that are no finite numbers"),
    ],
)
def test_a_calibration_that_says_nothing_is_refused(backbone: Any, batches: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantizedBackbone(backbone(), 4).calibrate(batches)


@pytest.mark.parametrize(
    ("checks", "message"), [([], "checks = 0"), ([torch.full((4, 1, 8, 8), torch.nan)], "checks = 'nan'")]
)
def test_checks_that_say_nothing_are_refused(checks: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantizedBackbone(make_vit(), 4).calibrate([torch.randn(4, 1, 8, 8)], checks)


def test_without_calibration_nothing_runs() -> None:
    for make in (make_vit, make_resnet):
        backbone = QuantizedBackbone(make(), 4).eval()
        with pytest.raises(UserError, match=r"network\.widths = 4: has no ranges and no codes yet"):
            backbone(torch.randn(2, *backbone.input_shape or ()))


def test_checkpoints_of_other_widths_or_older_versions_are_refused_in_one_line() -> None:
    state = QuantizedBackbone(make_vit(), 8).state_dict()
    with pytest.raises(UserError, match=r"ckpt_path.*has no weights at 4 bits: it is of other widths, or of an older"):
        QuantizedBackbone(make_vit(), 4).load_state_dict(state)
