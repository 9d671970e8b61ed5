"""Layers: simulated against integers by hand, native against simulated, segments of every family."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eenet.backbones import Bert, CifarResNet, StagedBackbone
from eenet.costs import count_macs
from eenet.errors import UserError
from eenet.quantization.grid import activation_grid, quantize_weight
from eenet.quantization.layers import NativeConv2d, NativeLinear, SimulatedLayer, native_layer
from eenet.quantization.ranges import METHODS, TAIL, activation_ranges
from eenet.quantization.segments import replace_layers, stage_layers
from tests._dummies import make_resnet, make_vit

TOLERANCE = 1e-5
"""Relative to the largest output: native sums are exact integers, simulated ones are rounded floats."""


def integers(layer: nn.Linear, values: Tensor, low: float, high: float, width: int) -> np.ndarray:
    """A quantized linear layer in NumPy, with its own grid and int64 sums."""
    levels, limit = 2**width - 1, 2 ** (width - 1) - 1
    weight, rows = layer.weight.detach().double().numpy(), values.double().numpy()
    step = (high - low) / levels
    zero = round(-low / step)
    q = np.clip(np.rint(rows / step) + zero, 0, levels).astype(np.int64) - zero
    scales = np.abs(weight).max(1) / limit
    w = np.clip(np.rint(weight / scales[:, None]), -limit, limit).astype(np.int64)
    return (q @ w.T) * step * scales + layer.bias.detach().double().numpy()


@pytest.mark.parametrize("width", [8, 6, 4])
@torch.no_grad()
def test_a_linear_layer_agrees_with_integers_by_hand(width: int) -> None:
    layer, values = nn.Linear(40, 7), torch.randn(50, 40)
    found = SimulatedLayer(layer, width, activation_grid(-2.0, 3.1, width))(values)
    np.testing.assert_allclose(found.numpy(), integers(layer, values, -2.0, 3.1, width), atol=1e-5)


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 2)},
]


@pytest.mark.parametrize("arguments", CONVOLUTIONS)
@torch.no_grad()
def test_native_convolutions_agree_with_simulated_ones(arguments: dict[str, Any]) -> None:
    layer, values = nn.Conv2d(6, 9, **arguments), torch.randn(4, 6, 11, 12)
    grid = activation_grid(values.min().item(), values.max().item(), 8)
    native = native_layer(layer, grid)
    assert isinstance(native, NativeConv2d)
    expected = SimulatedLayer(layer, 8, grid)(values)
    assert (native(values) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("shape", [(1, 64), (3, 17, 64)])
@torch.no_grad()
def test_native_linear_layers_agree_with_simulated_ones(shape: tuple[int, ...]) -> None:
    layer, values = nn.Linear(64, 33), torch.randn(shape)
    grid = activation_grid(-2.0, 2.5, 8)
    native = native_layer(layer, grid)
    assert isinstance(native, NativeLinear)
    assert native.codes.dtype == torch.int8
    expected = SimulatedLayer(layer, 8, grid)(values)
    assert (native(values) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_layers_without_a_kernel_have_no_native_form() -> None:
    grid = activation_grid(-1, 1, 8)
    layers = [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding="same")]
    assert [native_layer(layer, grid) for layer in [*layers, nn.Conv1d(4, 4, 3)]] == [None] * 4


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
        assert stage.macs + stage.float_macs == macs
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
    assert stage.float_macs == 2 * tokens**2 * dim  # scores and weighted values


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
    layers = {name: SimulatedLayer(backbone.get_submodule(name), 4, activation_grid(-3, 3, 4)) for name in names}
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
def test_ranges_are_the_extremes_and_quantiles_of_the_layers_inputs() -> None:
    backbone = make_vit().eval()
    names = stage_layers(backbone)[0].layers[:1]
    batches = [torch.randn(4, 1, 8, 8), 3 * torch.randn(4, 1, 8, 8)]
    seen: list[Tensor] = []
    backbone.get_submodule(names[0]).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten()))
    ranges = activation_ranges(backbone, names, batches)
    values = torch.cat(seen).numpy()
    assert METHODS == ("minmax", "percentile")
    np.testing.assert_allclose(ranges[0, 0], [values.min(), values.max()])
    np.testing.assert_allclose(ranges[1, 0], np.quantile(values, [TAIL, 1 - TAIL]), rtol=1e-5)


def test_an_empty_calibration_set_is_refused() -> None:
    with pytest.raises(UserError, match="calibration_batches = 0: activations need at least one batch"):
        activation_ranges(make_vit(), ["model.blocks.0.attn.qkv"], [])
