"""Weights on integer grids: ranges of least squared error, and rounding that makes up for its own errors (GPTQ).

GPTQ is Frantar, Ashkboos, Hoefler and Alistarh (ICLR 2023, arXiv 2210.17323): weights are rounded one input at a time,
and what each rounding adds to the layer's output is taken back by the inputs that are still to be rounded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.quantization.grid import SMALLEST, weight_limit, weight_scales

SHRINKS = 40
"""Ranges that are compared for each output channel: from the largest magnitude down to a quarter of it."""

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean."""

ROWS = 2**14
"""Rows of each layer and batch, in random places, that the second moments are taken of."""

CHUNK = 2**24
"""Values of the patches of a convolution that are held at once."""


def as_matrix(weight: Tensor, groups: int) -> Tensor:
    """A weight `(outputs, ...)` as one matrix for each group, `(groups, outputs / groups, inputs)`."""
    return weight.detach().unflatten(0, (groups, -1)).flatten(2)


def second_moments(layer: nn.Linear | nn.Conv2d, values: Tensor, generator: torch.Generator) -> Tensor:
    """Mean products of what each weight of a layer is multiplied with, `(groups, inputs, inputs)`.

    The squared error of the outputs is a quadratic form of the weights' errors in them. Of many rows `ROWS` are drawn.

    Args:
        layer: The layer.
        values: Its input.
        generator: Of the places, on the CPU.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> second_moments(nn.Linear(2, 1), rows, torch.Generator()).tolist()
        [[[5.0, 1.0], [1.0, 2.0]]]
    """
    if isinstance(layer, nn.Linear):
        rows = values.flatten(0, -2)
        return _moments(_drawn(rows, ROWS, generator).unsqueeze(0))
    sides, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
    padded = F.pad(values, sides, mode="constant" if mode == "zeros" else mode)
    inputs, moments = layer.weight[0].numel(), list[Tensor]()
    samples = max(1, CHUNK // (inputs * layer.groups * values[0, 0].numel()))
    parts = padded.split(samples)
    for part in parts:
        patches = F.unfold(part, layer.kernel_size, layer.dilation, 0, layer.stride)
        rows = patches.unflatten(1, (layer.groups, inputs)).permute(0, 3, 1, 2).flatten(0, 1)
        rows = _drawn(rows, max(1, ROWS * len(part) // len(values)), generator)
        moments.append(_moments(rows.transpose(0, 1)) * (len(part) / len(values)))
    return torch.stack(moments).sum(0)


def _moments(rows: Tensor) -> Tensor:
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows.mT @ rows / rows.shape[1]


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(rows) <= count:
        return rows
    return rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]


def mse_scales(weight: Tensor, width: int, importance: Tensor | None = None) -> Tensor:
    """Scales of least squared rounding error, among shares of those that reach the largest magnitude.

    Args:
        weight: `(..., channels, inputs)`.
        width: Below `eenet.tree.FLOAT`.
        importance: What the squared error of each input weighs, `(..., 1, inputs)`; all the same by default.

    Returns:
        `(..., channels)`; 1 for a channel of zeros.

    Example:
        >>> mse_scales(torch.tensor([[8.0, 5.0, 5.0, -5.0, 5.0]]), 2).item() < 8
        True
    """
    limit = weight_limit(width)
    widest = weight_scales(weight.flatten(0, -2), width).view(weight.shape[:-1])
    best, least = widest, torch.full_like(widest, float("inf"))
    for share in torch.linspace(1.0, 0.25, SHRINKS).tolist():
        scales = (widest * share).unsqueeze(-1)
        errors = ((weight / scales).round_().clamp_(-limit, limit) * scales - weight).square_()
        total = (errors if importance is None else errors * importance).sum(-1)
        better = total < least
        best, least = torch.where(better, scales.squeeze(-1), best), torch.where(better, total, least)
    return best


def gptq_codes(weight: Tensor, moments: Tensor, scales: Tensor, width: int) -> Tensor:
    """Round a layer's weights so that its outputs change least.

    Args:
        weight: `(groups, channels, inputs)`.
        moments: Of what it is multiplied with, `(groups, inputs, inputs)`.
        scales: `(groups, channels)`.
        width: Below `eenet.tree.FLOAT`.

    Returns:
        Codes `(groups, channels, inputs)`, whole numbers in floating point.

    Example:
        >>> moments = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]])  # two inputs that are nearly the same
        >>> gptq_codes(torch.tensor([[[0.4, 0.4]]]), moments, torch.ones(1, 1), 4).tolist()  # their sum is 0.8
        [[[0.0, 1.0]]]
    """
    limit, rest, scales = weight_limit(width), weight.double(), scales.double()
    diagonal = moments.double().diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True, stable=True)
    inputs = order.unsqueeze(1).expand_as(rest)
    moments = (
        moments.double()
        .gather(1, order.unsqueeze(2).expand_as(moments))
        .gather(2, order.unsqueeze(1).expand_as(moments))
    )
    mean = diagonal.mean(1).clamp_min(SMALLEST)
    moments.diagonal(dim1=1, dim2=2).add_(DAMPING * mean.unsqueeze(1))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    rest, codes = rest.gather(2, inputs), torch.empty_like(rest)
    for column in range(rest.shape[2]):
        own = rest[..., column]
        codes[..., column] = (own / scales).round_().clamp_(-limit, limit)
        error = (own - codes[..., column] * scales) / upper[:, column, column].unsqueeze(1)
        rest[..., column + 1 :] -= error.unsqueeze(2) * upper[:, None, column, column + 1 :]
    return torch.empty_like(codes).scatter_(2, inputs, codes).to(weight.dtype)
