"""MACs against hand counts and against the eager kernels."""

import pytest
import torch
from timm.layers import set_fused_attn
from torch.nn import functional as F

from eenet.backbones import StagedBackbone
from eenet.costs import CostProfile, count_macs, mean_cost
from eenet.errors import UserError
from eenet.network import EarlyExitNetwork, count_costs
from tests._dummies import make_network, make_resnet, make_vit


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
