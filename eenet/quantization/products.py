"""Products that are in no layer of a segment, on grids too: attention's, and those of stems, heads and predictors.

Activations have a range of their own for every row that is multiplied, so that no sample's result depends on another's.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from eenet.costs import count_macs
from eenet.errors import UserError
from eenet.profile import bitops
from eenet.quantization.grid import SMALLEST, quantize_rows, quantize_weight, weight_limit
from eenet.tree import FLOAT

REST_WIDTHS = (8, 4, FLOAT)
"""Bits that attention's products, embedding, heads and predictors can have."""


def check_rest(width: int, field: str) -> int:
    """Bits of what is in no segment's layers; a `UserError` where there is no such grid."""
    if width not in REST_WIDTHS:
        raise UserError(field, width, "must be 8, 4 or 32 bits")
    return width


def symmetric(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Codes of values on a symmetric grid for each row of the last axis, and its scale `(..., 1)`.

    Example:
        >>> codes, scale = symmetric(torch.tensor([[-7.0, 3.4], [0.0, 0.0]]), 4)
        >>> codes.tolist(), scale.tolist()
        ([[-7.0, 3.0], [0.0, 0.0]], [[1.0], [1.0]])
    """
    limit = weight_limit(width)
    scale = values.detach().abs().amax(-1, keepdim=True) / limit
    scale = torch.where(scale > SMALLEST, scale, 1.0)
    return (values / scale).round().clamp(-limit, limit), scale


def quantized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    width: int,
) -> Tensor:
    """`F.scaled_dot_product_attention` with both products on integer grids.

    Queries, keys and values have a symmetric grid for each token. The values' scales are multiplied into the softmax's
    probabilities, of which each row has an unsigned grid: what is summed over tokens are products of codes. Tokens that
    are masked change nothing.

    Args:
        query: `(..., queries, dim)`.
        key: `(..., tokens, dim)`.
        value: `(..., tokens, dim)`.
        attn_mask: As torch's.
        dropout_p: Must be 0.
        is_causal: As torch's.
        scale: As torch's.
        enable_gqa: As torch's.
        width: Bits of all four factors.
    """
    kind = query.dtype
    query, key, value = (rows.to(torch.promote_types(kind, torch.float32)) for rows in (query, key, value))
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (
            rows.unsqueeze(-3).expand(*rows.shape[:-2], times, *rows.shape[-2:]).flatten(-4, -3)
            for rows in (key, value)
        )
    (queries, left), (keys, right), (values, sizes) = (symmetric(rows, width) for rows in (query, key, value))
    scores = (queries @ keys.transpose(-1, -2)) * left * right.transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        places = [torch.arange(rows.shape[-2], device=rows.device) for rows in (query, key)]
        scores = scores.masked_fill(places[0].unsqueeze(1) < places[1], float("-inf"))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    weights = torch.where(weights == weights, weights, 0.0)  # a row that sees nothing is zeros, as torch's
    weights = weights * sizes.transpose(-1, -2)
    step = weights.amax(-1, keepdim=True) / (2**width - 1)
    step = torch.where(step > SMALLEST, step, 1.0)
    return (((weights / step).round() @ values) * step).to(kind)


class _Products(TorchFunctionMode):
    """Hands attention, and linear layers and convolutions too if `layers`, to another function."""

    def __init__(self, run: Callable[..., Any], layers: bool) -> None:
        super().__init__()
        self.run, self.layers = run, layers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention or (self.layers and func in (F.linear, torch.conv2d)):
            return self.run(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def quantized_products(width: int, layers: bool = True) -> AbstractContextManager[Any]:
    """While it lasts, attention and, if `layers`, linear layers and convolutions run at a width.

    Example:
        >>> layer, rows = torch.nn.Linear(8, 8), torch.randn(2, 8)
        >>> with quantized_products(4):
        ...     rounded = layer(rows)
        >>> 0 < (rounded - layer(rows)).abs().max() < 0.5
        tensor(True)
    """

    def run(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if func is F.scaled_dot_product_attention:
            return quantized_attention(*args, **kwargs, width=width)
        values, weight, *rest = args
        rows = values if func is F.linear else values.flatten(1)
        rounded = quantize_rows(rows, width).view_as(values)
        return func(rounded, quantize_weight(weight, width), *rest, **kwargs)

    return nullcontext() if width == FLOAT else _Products(run, layers)


class Split(NamedTuple):
    """MACs of a function.

    Attributes:
        macs: Of everything.
        quantized: Of those that `quantized_products` runs at a width.
        result: What the function returned.
    """

    macs: int
    quantized: int
    result: Any

    @property
    def rest(self) -> int:
        """Of those that stay in floating point."""
        return self.macs - self.quantized

    def bitops(self, width: int) -> int:
        """BitOPs where they run at a width.

        Example:
            >>> Split(11, 10, None).bitops(8)
            1664
        """
        return bitops(self.quantized, width, width) + bitops(self.rest)


def split_macs(function: Callable[..., Any], *args: Any, layers: bool = True) -> Split:
    """Run a function in floating point and count its MACs.

    Args:
        function: What to run.
        args: Its arguments.
        layers: As of `quantized_products`.

    Example:
        >>> split_macs(lambda rows: torch.nn.Linear(4, 3)(rows) @ torch.ones(3, 2), torch.zeros(1, 4))[:2]
        (18, 12)
    """
    quantized = 0

    def run(func: Callable[..., Tensor], *given: Any, **kwargs: Any) -> Tensor:
        nonlocal quantized
        macs, result = count_macs(lambda: func(*given, **kwargs))
        quantized += macs
        return result

    with _Products(run, layers), torch.no_grad():
        function(*args)
    macs, result = count_macs(function, *args)
    return Split(macs, quantized, result)
