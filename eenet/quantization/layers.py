"""Two executions of one quantized layer on the same codes: simulated in floating point, native with int8 products."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.errors import UserError
from eenet.quantization.grid import Grid, activation_codes, quantize_activation, quantize_rows, row_codes

NATIVE_WIDTH = 8
"""Bits of the integer products' factors: codes of fewer bits are multiplied as well."""


class Weights(NamedTuple):
    """A layer's weight on its grid.

    Attributes:
        codes: In the shape of the weight, whole numbers in an integer type.
        scales: Of each output channel, `(channels,)`.
        shifts: What is added to each output channel, so that its mean is the float layer's, `(channels,)`.
    """

    codes: Tensor
    scales: Tensor
    shifts: Tensor

    def rounded(self) -> Tensor:
        """The weight in floating point."""
        return self.codes * self.scales.view(-1, *[1] * (self.codes.ndim - 1))


Rounding = Grid | int
"""How a layer's input is rounded: to one grid, or to grids of so many bits, one for each row of the last axis."""


def quantizable(module: nn.Module) -> bool:
    """Whether a layer has a grid: linear layers and 2-d convolutions, and subclasses that compute nothing else.

    Example:
        >>> quantizable(nn.Linear(2, 2)), quantizable(nn.LayerNorm(2))
        (True, False)
    """
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)


class SimulatedLayer(nn.Module):
    """A layer on values that were rounded to their grids, in float32 or finer; it shares its codes with its network.

    Args:
        layer: The float layer.
        weights: Its weight on the grid.
        rounding: Of the input.
    """

    def __init__(self, layer: nn.Module, weights: Weights, rounding: Rounding) -> None:
        super().__init__()
        self.layer, self.weights, self.rounding = layer, weights, rounding

    def forward(self, values: Tensor) -> Tensor:
        """What the float layer gives for the rounded input and weight."""
        kind = torch.promote_types(values.dtype, torch.float32)
        given = values.to(kind)
        rounding = self.rounding
        given = quantize_rows(given, rounding) if isinstance(rounding, int) else quantize_activation(given, rounding)
        own = {"weight": self.weights.rounded().to(kind)}
        if self.layer.bias is not None:
            own["bias"] = cast(Tensor, self.layer.bias).to(kind)
        found = torch.func.functional_call(self.layer, own, (given,))
        return (found + channels(self.weights.shifts.to(kind), self.layer)).to(values.dtype)


def channels(values: Tensor, layer: nn.Module) -> Tensor:
    """Values of output channels, in a shape that adds to a layer's output."""
    return values if isinstance(layer, nn.Linear) else values.view(-1, 1, 1)


class NativeLinear(nn.Module):
    """A linear layer by int8 products that are summed in int32, `torch._int_mm`.

    With input codes `q`, zero point `z`, weight codes `w` and scales `s` and `t` the output is `s t (q w - z sum(w))`.

    Args:
        layer: The float layer.
        weights: Its weight on the grid, at most 8 bits.
        rounding: Of the input, at most 8 bits.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, weights: Weights, rounding: Rounding) -> None:
        super().__init__()
        self.rounding, self.codes = rounding, weights.codes.to(torch.int8).flatten(1)
        self.scales = weights.scales.to(torch.promote_types(weights.scales.dtype, torch.float32))
        self.offsets = weights.shifts.to(self.scales)
        if layer.bias is not None:
            self.offsets = self.offsets + layer.bias.detach()
        self.sums = self.codes.sum(1).to(self.scales)
        if isinstance(rounding, Grid):
            self.offsets = self.offsets - self.scales * rounding.scale * rounding.zero_point * self.sums
            self.scales = self.scales * rounding.scale

    def forward(self, values: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`; a `UserError` where a value is no number, which has no code."""
        if isinstance(self.rounding, Grid):
            sums = self.products(codes_of(values, self.rounding).flatten(0, -2))
        else:
            rows = check_numbers(values).flatten(0, -2).to(self.scales)
            codes, scale, zero = row_codes(rows, self.rounding)
            products = torch._int_mm(codes.to(torch.int8), self.codes.T).to(self.scales)
            sums = (products - zero * self.sums) * (scale * self.scales) + self.offsets
        return sums.unflatten(0, values.shape[:-1]).to(values.dtype)

    def products(self, codes: Tensor) -> Tensor:
        """Codes `(rows, inputs)` to float outputs `(rows, outputs)`."""
        return torch._int_mm(codes, self.codes.T).to(self.scales).mul_(self.scales).add_(self.offsets)


class NativeConv2d(NativeLinear):
    """A convolution without groups as one int8 product over the patches under its kernel.

    Args:
        layer: The float layer.
        weights: Its weight on the grid, at most 8 bits.
        rounding: Of the input, at most 8 bits.
    """

    def __init__(self, layer: nn.Conv2d, weights: Weights, rounding: Grid) -> None:
        super().__init__(layer, weights, rounding)
        self.grid = rounding
        self.kernel, self.stride = layer.kernel_size, layer.stride
        rows, columns = cast(tuple[int, int], layer.padding)
        self.padding = (columns, columns, rows, rows)

    def forward(self, values: Tensor) -> Tensor:
        """`(batch, channels, height, width)` to the convolution's output."""
        codes = F.pad(codes_of(values, self.grid), self.padding, value=self.grid.zero_point)
        patches = codes.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        batch, _, height, width = patches.shape[:4]
        sums = self.products(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2))
        return sums.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2).to(values.dtype)


def codes_of(values: Tensor, grid: Grid) -> Tensor:
    """The int8 codes of a layer's input; a `UserError` where a value is no number."""
    return activation_codes(check_numbers(values).to(torch.promote_types(values.dtype, torch.float32)), grid)


def check_numbers(values: Tensor) -> Tensor:
    """Values that are all numbers, else a `UserError`; an exported program does not look."""
    if not torch.compiler.is_exporting() and values.detach().sum().isnan():
        raise UserError("inputs", "nan", "an input of a layer on integers is not a number, which has no code")
    return values


def native_layer(layer: nn.Module, weights: Weights, rounding: Rounding) -> nn.Module | None:
    """The layer on integer products, `None` where there is no kernel for it."""
    if isinstance(layer, nn.Linear):
        return NativeLinear(layer, weights, rounding)
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str) or isinstance(rounding, int):
        return None
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    return NativeConv2d(layer, weights, rounding) if plain else None
