"""Ranges of the activations, from unlabelled batches through the float backbone."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.quantization.segments import called, evaluation

METHODS = ("minmax", "percentile")
"""Ways to choose a range: the lowest and highest value, or the quantiles at `TAIL` and `1 - TAIL`."""

TAIL = 0.001

SAMPLED = 2**15
"""Values of each layer and batch that the quantiles are taken of."""


def activation_ranges(backbone: StagedBackbone, layers: Sequence[str], batches: Iterable[Any]) -> Tensor:
    """Ranges of the inputs of some layers.

    Args:
        backbone: The float backbone.
        layers: Names of the layers.
        batches: Inputs, as the backbone takes them.

    Returns:
        Lowest and highest value, `(methods, layers, 2)`.

    Raises:
        UserError: There is no batch.
    """
    modules = [backbone.get_submodule(name) for name in layers]
    inputs: dict = {}
    extremes: list[Tensor] = []
    samples: list[list[Tensor]] = []
    with torch.no_grad(), evaluation(backbone), called(modules, inputs):
        for batch in batches:
            backbone(batch)
            values = [inputs[module].flatten() for module in modules]
            extremes.append(torch.stack([torch.stack(rows.aminmax()) for rows in values]))
            samples.append([rows[:: max(1, len(rows) // SAMPLED)] for rows in values])
    if not extremes:
        raise UserError("calibration_batches", 0, "activations need at least one batch to take their ranges from")
    lowest, highest = torch.stack(extremes).unbind(-1)
    minmax = torch.stack([lowest.amin(0), highest.amax(0)], dim=-1)
    tails = torch.tensor([TAIL, 1 - TAIL], device=minmax.device, dtype=minmax.dtype)
    percentile = torch.stack([torch.quantile(torch.cat(rows), tails) for rows in zip(*samples, strict=True)])
    return torch.stack([minmax, percentile])
