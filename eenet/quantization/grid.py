"""Integer grids: symmetric per output channel for weights, affine per tensor for activations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.tree import FLOAT

WIDTHS = (FLOAT, 16, 8, 6, 4, 3, 2)
"""Bit-widths that a segment can run at: of the weights, and of the activations from `LEAST_ACTIVATION` on."""

LEAST_ACTIVATION = 4
"""Bits of the activations where weights have fewer."""


SMALLEST = 1e-30
"""Distance of codes below which everything is taken for 0: float32 has no inverse of much smaller numbers."""


class Grid(NamedTuple):
    """The values `scale * (code - zero_point)` for the integer codes `low` to `high`."""

    scale: float
    zero_point: int
    low: int
    high: int


def check_widths(widths: Sequence[int], field: str = "network.widths") -> tuple[int, ...]:
    """Bit-widths from the widest to the narrowest.

    Raises:
        UserError: None, one twice, or one that has no grid.

    Example:
        >>> check_widths([4, 32])
        (32, 4)
    """
    several = isinstance(widths, Sequence) and all(type(width) is int for width in widths)
    if not several or not widths or len(set(widths)) < len(widths) or not set(widths) <= set(WIDTHS):
        raise UserError(field, widths, f"must be different widths among {', '.join(map(str, WIDTHS))} bits")
    return tuple(sorted(widths, reverse=True))


def check_edge(width: int, field: str) -> int:
    """The least bits of the first and the last layer.

    Raises:
        UserError: It has no grid; floating point has none.
    """
    if type(width) is not int or width == FLOAT or width not in WIDTHS:
        grids = ", ".join(str(width) for width in WIDTHS if width != FLOAT)
        raise UserError(field, width, f"must be one of {grids} bits, or null for the width of the other layers")
    return width


def activation_width(width: int) -> int:
    """Bits of the activations of a segment that runs at a width.

    Example:
        >>> activation_width(8), activation_width(3)
        (8, 4)
    """
    return max(width, LEAST_ACTIVATION)


def weight_limit(width: int) -> int:
    """The largest code of a symmetric grid, which has no code for minus the next one.

    Example:
        >>> weight_limit(8), weight_limit(4)
        (127, 7)
    """
    return 2 ** (width - 1) - 1


def weight_scales(weight: Tensor, width: int) -> Tensor:
    """Distance of neighbouring codes in each output channel: the largest magnitude gets the largest code.

    Args:
        weight: `(channels, ...)`.
        width: Below `FLOAT`.

    Returns:
        `(channels,)`; 1 for a channel of zeros.
    """
    scales = weight.detach().flatten(1).abs().amax(1) / weight_limit(width)
    return torch.where(scales > SMALLEST, scales, 1.0)


def weight_codes(weight: Tensor, width: int) -> Tensor:
    """The codes of a weight, whole numbers in floating point.

    Args:
        weight: `(channels, ...)`.
        width: Below `FLOAT`.

    Example:
        >>> weight_codes(torch.tensor([[14.0, 6.8, -1.2]]), 4)
        tensor([[ 7.,  3., -1.]])
    """
    return _codes_and_scales(weight, width)[0]


def quantize_weight(weight: Tensor, width: int) -> Tensor:
    """A weight rounded to its grid, in floating point.

    Args:
        weight: `(channels, ...)`.
        width: Below `FLOAT`.

    Example:
        >>> quantize_weight(torch.tensor([[7.0, 3.4, -0.6]]), 4)
        tensor([[ 7.,  3., -1.]])
    """
    codes, scales = _codes_and_scales(weight, width)
    return codes * scales


def _codes_and_scales(weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    limit = weight_limit(width)
    scales = weight_scales(weight, width).view(-1, *[1] * (weight.ndim - 1))
    return (weight.detach() / scales).round_().clamp_(-limit, limit), scales


def activation_grid(lowest: float, highest: float, width: int) -> Grid:
    """A grid from the lowest to the highest value, moved so that 0 is on it: padding with zeros stays exact.

    Args:
        lowest: Of the values; values below are clipped.
        highest: Of the values; values above are clipped.
        width: Below `FLOAT`.

    Example:
        >>> activation_grid(-0.5, 7.0, 4)
        Grid(scale=0.5, zero_point=-7, low=-8, high=7)
    """
    low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    scale = (highest - lowest) / (high - low)
    scale = scale if scale > SMALLEST else 1.0
    return Grid(scale, max(low, min(high, low - round(lowest / scale))), low, high)


def quantize_activation(values: Tensor, grid: Grid) -> Tensor:
    """Values rounded to a grid, in floating point.

    Example:
        >>> quantize_activation(torch.tensor([-3.0, 0.2, 0.3, 9.0]), activation_grid(-0.5, 7.0, 4))
        tensor([-0.5000,  0.0000,  0.5000,  7.0000])
    """
    return _steps(values, grid).mul_(grid.scale)


def activation_codes(values: Tensor, grid: Grid) -> Tensor:
    """The codes of `quantize_activation`, int8.

    Example:
        >>> activation_codes(torch.tensor([-3.0, 0.2, 0.3, 9.0]), activation_grid(-0.5, 7.0, 4)).tolist()
        [-8, -7, -6, 7]
    """
    return _steps(values, grid).add_(grid.zero_point).to(torch.int8)


def row_grids(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """An affine grid for each row of the last axis, from its own lowest to its highest value; 0 is on it.

    Args:
        values: `(..., inputs)`.
        width: Below `FLOAT`.

    Returns:
        Scales, and the lowest multiple of each, whole numbers in floating point, `(..., 1)`.

    Example:
        >>> scale, lowest = row_grids(torch.tensor([[-0.5, 7.0], [0.0, 0.0]]), 4)
        >>> scale.tolist(), lowest.tolist()
        ([[0.5], [1.0]], [[-1.0], [0.0]])
    """
    highest, lowest = values.amax(-1, keepdim=True).clamp_min(0), values.amin(-1, keepdim=True).clamp_max(0)
    scale = (highest - lowest) / (2**width - 1)
    scale = torch.where(scale > SMALLEST, scale, 1.0)
    return scale, (lowest / scale).round()


def row_codes(values: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values on `row_grids`: codes from `-2 ** (width - 1)` in floating point, scales, and the code of 0."""
    scale, lowest = row_grids(values, width)
    low = -(2 ** (width - 1))
    codes = ((values / scale).round() - lowest).clamp(0, 2**width - 1) + low
    return codes, scale, low - lowest


def quantize_rows(values: Tensor, width: int) -> Tensor:
    """Values rounded to a grid of their row, in their own type.

    Example:
        >>> quantize_rows(torch.tensor([[-0.5, 0.3, 7.0]]), 4).tolist()
        [[-0.5, 0.5, 7.0]]
    """
    codes, scale, zero = row_codes(values.to(torch.promote_types(values.dtype, torch.float32)), width)
    return ((codes - zero) * scale).to(values.dtype)


def _steps(values: Tensor, grid: Grid) -> Tensor:
    inverse = float(1 / np.float32(grid.scale))  # rounded as torch's own quantizers round it
    return (values * inverse).round_().clamp_(grid.low - grid.zero_point, grid.high - grid.zero_point)
