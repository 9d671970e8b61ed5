"""Two executions of one quantized layer: simulated in floating point at any width, native with int8 products."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.quantization.grid import (
    Grid,
    activation_codes,
    quantize_activation,
    quantize_weight,
    weight_codes,
    weight_scales,
)

NATIVE_WIDTH = 8
"""The width of the integer products."""


def quantizable(module: nn.Module) -> bool:
    """Whether a layer has a grid: linear layers and 2-d convolutions, and subclasses that compute nothing else.

    Example:
        >>> quantizable(nn.Linear(2, 2)), quantizable(nn.LayerNorm(2))
        (True, False)
    """
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)


class SimulatedLayer(nn.Module):
    """A layer on values that were rounded to their grids; it holds no weights of its own.

    Args:
        layer: The float layer, whose weight is read and rounded at every call.
        width: Bits of the weight.
        grid: Of the input.
    """

    def __init__(self, layer: nn.Module, width: int, grid: Grid) -> None:
        super().__init__()
        self.layer, self.width, self.grid = layer, width, grid

    def forward(self, values: Tensor) -> Tensor:
        """What the float layer gives for the rounded input and weight."""
        weight = quantize_weight(cast(Tensor, self.layer.weight), self.width)
        return torch.func.functional_call(self.layer, {"weight": weight}, (quantize_activation(values, self.grid),))


class NativeLinear(nn.Module):
    """A linear layer by int8 products that are summed in int32, `torch._int_mm`; it holds the weight's codes.

    With input codes `q`, zero point `z`, weight codes `w` and scales `s` and `t` the output is `s t (q w - z sum(w))`.

    Args:
        layer: The float layer.
        grid: Of the input, 8 bits.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, grid: Grid) -> None:
        super().__init__()
        weight = layer.weight.detach().flatten(1)
        scales = weight_scales(weight, NATIVE_WIDTH)
        codes = weight_codes(weight, NATIVE_WIDTH)
        self.grid = grid
        self.codes = codes.to(torch.int8)
        self.scales = scales * grid.scale
        self.offsets = -self.scales * grid.zero_point * codes.sum(1)
        if layer.bias is not None:
            self.offsets += layer.bias.detach()

    def forward(self, values: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`."""
        sums = self.products(activation_codes(values, self.grid).flatten(0, -2))
        return sums.unflatten(0, values.shape[:-1])

    def products(self, codes: Tensor) -> Tensor:
        """Codes `(rows, inputs)` to float outputs `(rows, outputs)`."""
        return torch._int_mm(codes, self.codes.T).float().mul_(self.scales).add_(self.offsets)


class NativeConv2d(NativeLinear):
    """A convolution without groups as one int8 product over the patches under its kernel.

    Args:
        layer: The float layer.
        grid: Of the input, 8 bits.
    """

    def __init__(self, layer: nn.Conv2d, grid: Grid) -> None:
        super().__init__(layer, grid)
        self.kernel, self.stride = layer.kernel_size, layer.stride
        rows, columns = cast(tuple[int, int], layer.padding)
        self.padding = (columns, columns, rows, rows)

    def forward(self, values: Tensor) -> Tensor:
        """`(batch, channels, height, width)` to the convolution's output."""
        codes = F.pad(activation_codes(values, self.grid), self.padding, value=self.grid.zero_point)
        patches = codes.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        batch, _, height, width = patches.shape[:4]
        sums = self.products(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2))
        return sums.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2)


def native_layer(layer: nn.Module, grid: Grid) -> nn.Module | None:
    """The layer on integer products, `None` where there is no kernel for it."""
    if isinstance(layer, nn.Linear):
        return NativeLinear(layer, grid)
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        return None
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    return NativeConv2d(layer, grid) if plain else None
