"""Grids against exact arithmetic and torch's own fake quantization."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.errors import UserError
from eenet.quantization.grid import (
    WIDTHS,
    activation_codes,
    activation_grid,
    check_widths,
    quantize_activation,
    quantize_weight,
    weight_codes,
    weight_scales,
)

NARROW = [width for width in WIDTHS if width < 32]


@pytest.mark.parametrize("width", NARROW)
def test_weights_agree_with_torchs_per_channel_quantization(width: int) -> None:
    weight = torch.randn(6, 5, 3, 3) * torch.logspace(-3, 2, 6).view(-1, 1, 1, 1)
    limit = 2 ** (width - 1) - 1
    scales = weight.abs().amax((1, 2, 3)) / limit
    expected = torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros(6).int(), 0, -limit, limit)
    steps = ((quantize_weight(weight, width) - expected) / scales.view(-1, 1, 1, 1)).abs()
    assert (steps > 0.5).float().mean() < 0.01  # values at the middle of two codes may fall either way
    assert steps.max() < 1.01


def nearest_codes(values: list[float], scale: float, zero: int, low: int, high: int) -> list[set[int]]:
    """The codes that exact arithmetic allows: the nearest, or both around a value in the middle to float precision."""
    allowed = []
    for value in values:
        place = Fraction(value) / Fraction(scale) + zero
        codes = {
            code for code in (int(place) - 1, int(place), int(place) + 1) if abs(code - place) <= Fraction(5001, 10000)
        }
        allowed.append({max(low, min(high, code)) for code in codes})
    return allowed


finite = st.floats(-100, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(finite, min_size=1, max_size=8), ends=st.tuples(finite, finite), width=st.sampled_from([8, 6, 4])
)
def test_activation_codes_are_the_nearest_of_the_grid(
    values: list[float], ends: tuple[float, float], width: int
) -> None:
    lowest, highest = sorted(ends)
    if highest - lowest < 1e-3:
        highest = lowest + 1
    grid = activation_grid(lowest, highest, width)
    codes = activation_codes(torch.tensor(values), grid).tolist()
    allowed = nearest_codes(values, grid.scale, grid.zero_point, grid.low, grid.high)
    assert all(code in near for code, near in zip(codes, allowed, strict=True))


@settings(max_examples=60, deadline=None)
@given(ends=st.tuples(finite, finite), width=st.sampled_from(NARROW))
def test_a_grid_has_zero_and_covers_its_range_to_one_step(ends: tuple[float, float], width: int) -> None:
    lowest, highest = sorted(ends)
    grid = activation_grid(lowest, highest, width)
    assert grid.low <= grid.zero_point <= grid.high
    assert grid.high - grid.low == 2**width - 1
    assert grid.scale * (grid.low - grid.zero_point) <= min(lowest, 0) + grid.scale
    assert grid.scale * (grid.high - grid.zero_point) >= max(highest, 0) - grid.scale
    assert quantize_activation(torch.zeros(1), grid).item() == 0


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4), width=st.sampled_from(NARROW))
def test_quantizing_weights_twice_changes_nothing_and_errs_by_half_a_step(rows: list[list[float]], width: int) -> None:
    weight = torch.tensor(rows, dtype=torch.float64)
    scales = weight_scales(weight, width)
    once = quantize_weight(weight, width)
    torch.testing.assert_close(quantize_weight(once, width), once)
    assert ((once - weight).abs() <= scales.unsqueeze(1) * 0.5001).all()
    codes = weight_codes(weight, width)
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= 2 ** (width - 1) - 1


@pytest.mark.parametrize("width", NARROW)
def test_activations_agree_with_torchs_per_tensor_quantization(width: int) -> None:
    grid = activation_grid(-1.3, 2.7, width)
    values = torch.randn(20_000) * 2
    expected = torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, grid.low, grid.high)
    torch.testing.assert_close(quantize_activation(values, grid), expected)


def test_simulated_activations_are_their_codes_on_the_grid() -> None:
    grid = activation_grid(-1.0, 3.0, 6)
    values = torch.randn(1000) * 2
    expected = (activation_codes(values, grid).float() - grid.zero_point) * grid.scale
    torch.testing.assert_close(quantize_activation(values, grid), expected)


def test_a_channel_of_zeros_stays_zero() -> None:
    assert quantize_weight(torch.zeros(2, 3), 4).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("widths", [[], [8, 8], [5], [32, 12], [64]])
def test_widths_without_a_grid_are_refused(widths: list[int]) -> None:
    with pytest.raises(UserError, match=r"network\.widths = .*32, 16, 8, 6, 4, 3, 2 bits"):
        check_widths(widths)
