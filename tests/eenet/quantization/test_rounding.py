"""Rounding against brute force, closed forms and the definition of a layer."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eenet.quantization.grid import quantize_rows, quantize_weight, weight_limit
from eenet.quantization.rounding import as_matrix, gptq_codes, mse_scales, second_moments


def loss(weight: Tensor, codes: Tensor, scale: float, moments: Tensor) -> float:
    """Squared error of a row's outputs, as a quadratic form."""
    error = codes * scale - weight
    return (error @ moments @ error).item()


def test_gptq_is_near_the_best_codes_and_ahead_of_rounding_to_the_nearest() -> None:
    """Brute force over all codes of four correlated inputs at 2 bits."""
    generator = torch.Generator().manual_seed(0)
    better, excess = 0, []
    for _ in range(40):
        mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        moments = mixing @ mixing.T / 4 + 0.05 * torch.eye(4, dtype=torch.float64)
        weight = torch.randn(4, generator=generator, dtype=torch.float64)
        scale = weight.abs().max().item()
        found = gptq_codes(weight.view(1, 1, 4), moments.unsqueeze(0), torch.tensor([[scale]]), 2).flatten()
        every = [
            loss(weight, torch.tensor(codes, dtype=torch.float64), scale, moments)
            for codes in product((-1, 0, 1), repeat=4)
        ]
        nearest = loss(weight, (weight / scale).round(), scale, moments)
        own = loss(weight, found, scale, moments)
        assert own >= min(every) - 1e-12
        better += own <= nearest + 1e-12
        excess.append((own, min(every), nearest))
    own, best, nearest = np.array(excess).mean(0)
    assert better >= 34
    assert own < best + 0.35 * (nearest - best)


def test_gptq_of_independent_inputs_rounds_to_the_nearest() -> None:
    weight, scales = torch.randn(2, 5, 7), torch.rand(2, 5) + 0.2
    moments = torch.rand(2, 7).add_(0.1).diag_embed()
    nearest = (weight / scales.unsqueeze(-1)).round().clamp(-7, 7)
    assert torch.equal(gptq_codes(weight, moments, scales, 4), nearest)


def test_inputs_that_are_always_zero_are_rounded_all_the_same() -> None:
    moments = torch.zeros(1, 3, 3)
    assert gptq_codes(torch.tensor([[[0.6, -1.2, 0.0]]]), moments, torch.ones(1, 1), 4).tolist() == [[[1, -1, 0]]]


@pytest.mark.parametrize("width", [4, 3, 2])
def test_ranges_have_the_least_squared_error(width: int) -> None:
    """Against every share of the extremes in fine steps."""
    weight, limit = torch.randn(6, 50, dtype=torch.float64), weight_limit(width)
    found = mse_scales(weight, width)

    def error(scales: Tensor) -> Tensor:
        rounded = (weight / scales.unsqueeze(1)).round().clamp(-limit, limit) * scales.unsqueeze(1)
        return (rounded - weight).square().sum(1)

    widest = weight.abs().amax(1) / limit
    best = torch.stack([error(widest * share) for share in torch.linspace(0.25, 1, 1501)]).amin(0)
    assert (error(found) <= error(widest)).all()
    assert (error(found) <= best * 1.05).all()
    weighed = mse_scales(weight, width, torch.ones(1, 50))
    torch.testing.assert_close(weighed, found)


def test_an_input_that_weighs_nothing_sets_no_range() -> None:
    weight, importance = torch.tensor([[1.0, -0.9, 0.5, 2.5]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert 7 * mse_scales(weight, 4, importance).item() < 1.5 < 2 < 7 * mse_scales(weight, 4).item()


LAYERS: list[Any] = [
    nn.Linear(6, 4),
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 8, 3, groups=2, stride=2, bias=False),
    nn.Conv2d(4, 8, (1, 3), groups=4, padding="same", dilation=2),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_second_moments_give_the_squared_error_of_the_outputs(layer: Any) -> None:
    """For any change of the weights, grouped and depthwise convolutions included."""
    layer = layer.double()
    shape = (5, 7, 6) if isinstance(layer, nn.Linear) else (3, 4, 7, 8)
    values, change = torch.randn(shape, dtype=torch.float64), torch.randn_like(layer.weight)
    groups = getattr(layer, "groups", 1)
    moments = second_moments(layer, values, torch.Generator())
    other = torch.func.functional_call(layer, {"weight": layer.weight + change}, (values,))
    difference = (other - layer(values)).movedim(1, -1) if groups > 1 or values.ndim == 4 else other - layer(values)
    wanted = difference.flatten(0, -2).square().mean(0)
    rows = as_matrix(change, groups)
    torch.testing.assert_close(torch.einsum("goi,gij,goj->go", rows, moments, rows).flatten(), wanted)


def test_drawn_places_cover_all_channels_and_agree_with_the_mean() -> None:
    layer, values = nn.Linear(8, 2), torch.randn(60_000, 8) * torch.arange(1, 9)
    moments = second_moments(layer, values, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moments[0].diagonal(), torch.arange(1.0, 9).square(), rtol=0.1, atol=0)


@pytest.mark.parametrize("width", [8, 4])
def test_rows_agree_with_torchs_quantization_of_each(width: int) -> None:
    values = torch.randn(20, 30) * torch.logspace(-2, 2, 20).unsqueeze(1)
    levels = 2**width - 1
    for row, found in zip(values, quantize_rows(values, width), strict=True):
        low, high = min(row.min().item(), 0), max(row.max().item(), 0)
        scale = (high - low) / levels
        expected = torch.fake_quantize_per_tensor_affine(row, scale, round(-low / scale), 0, levels)
        steps = ((found - expected) / scale).abs()
        assert steps.max() < 1.01
        assert (steps > 0.01).sum() <= 1  # a value in the middle of two codes may fall either way


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    values = torch.randn(9, 5, 16)
    torch.testing.assert_close(quantize_rows(values, 4)[3], quantize_rows(values[3:4], 4)[0], rtol=0, atol=0)
    assert quantize_rows(torch.zeros(2, 3), 8).tolist() == [[0.0] * 3] * 2
    assert quantize_weight(torch.zeros(2, 3), 2).tolist() == [[0.0] * 3] * 2
