"""What quantization needs of unlabelled batches through the float backbone: ranges, second moments, mean outputs."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.quantization.grid import activation_grid, activation_width, quantize_activation
from eenet.quantization.rounding import second_moments
from eenet.quantization.segments import calls, evaluation

METHODS = ("mse", "token")
"""Ways to choose the range of a layer's input: the share of the extremes with the least squared rounding error, or for
linear layers one range for each row, taken as it comes (convolutions then have that of `mse`)."""

SAMPLED = 2**15
"""Values of each layer and batch, in random places, that squared errors are taken of."""

SHARES = 24
"""Ranges that `mse` compares, down to a tenth of the extremes."""


class Observed(NamedTuple):
    """What was seen of one layer.

    Attributes:
        extremes: Lowest and highest input.
        sample: Inputs in random places.
        moments: Mean products of what its weights are multiplied with, `(groups, inputs, inputs)`.
        outputs: Mean of each output channel, `(channels,)`.
        by_rows: Whether it can have a range for each row: it is linear.
    """

    extremes: tuple[float, float]
    sample: Tensor
    moments: Tensor
    outputs: Tensor
    by_rows: bool

    def range(self, width: int) -> list[float]:
        """Lowest and highest value of the grid with the least squared error at a width."""
        errors, (low, high) = list[Tensor](), self.extremes
        shares = torch.linspace(1.0, 0.1, SHARES).tolist()
        for share in shares:
            grid = activation_grid(share * low, share * high, activation_width(width))
            errors.append((quantize_activation(self.sample, grid) - self.sample).square_().mean())
        best = shares[int(torch.stack(errors).argmin())]
        return [best * low, best * high]


def observe(backbone: StagedBackbone, layers: Sequence[str], batches: Iterable[Any], seed: int = 0) -> list[Observed]:
    """Run the float backbone and look at some of its layers, at every call of each.

    Args:
        backbone: The float backbone.
        layers: Names of the layers.
        batches: Inputs, as the backbone takes them.
        seed: Of the random places.

    Raises:
        UserError: There is no batch, all samples are the same, or a value is no number.
    """
    modules = [backbone.get_submodule(name) for name in layers]
    generator = torch.Generator().manual_seed(seed)
    seen: dict[nn.Module, list[Observed]] = {module: [] for module in modules}

    def look(module: nn.Module, values: Tensor, output: Tensor) -> None:
        if not (values.isfinite().all() and output.isfinite().all()):
            name = layers[modules.index(module)]
            raise UserError("calibration", name, "reads or gives values that are no finite numbers; look at the data")
        flat = values.flatten()
        places = torch.randint(len(flat), (min(SAMPLED, len(flat)),), generator=generator).to(flat.device)
        sample = flat[places].to(torch.promote_types(flat.dtype, torch.float32))
        low, high = flat.aminmax()
        assert isinstance(module, nn.Linear | nn.Conv2d)
        seen[module].append(
            Observed(
                (low.item(), high.item()),
                sample,
                second_moments(module, values, generator),
                output_means(output, module),
                isinstance(module, nn.Linear),
            )
        )

    first, varied, empty = None, False, True
    with torch.no_grad(), evaluation(backbone), calls(modules, look):
        for batch in batches:
            rows, empty = pytree.tree_leaves(batch), False
            first = [values[:1] for values in rows] if first is None else first
            varied = varied or any(not torch.equal(own[:1].expand_as(own), own) for own in rows)
            varied = varied or any(not torch.equal(own[:1], other) for own, other in zip(rows, first, strict=True))
            backbone(batch)
    if empty:
        raise UserError("calibration_batches", 0, "activations need at least one batch to take their ranges from")
    if not varied:
        raise UserError("calibration_batches", "constant", "all samples are the same; give inputs that differ")
    return [merge_observed(seen[module]) for module in modules]


def output_means(output: Tensor, layer: nn.Module) -> Tensor:
    """Mean of each output channel, `(channels,)`, at least in float32."""
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    return output.flatten(0, -2).mean(0) if isinstance(layer, nn.Linear) else output.mean((0, 2, 3))


def merge_observed(parts: Sequence[Observed]) -> Observed:
    """What several batches and calls say together."""
    lows, highs = zip(*(part.extremes for part in parts), strict=True)
    moments, outputs = (torch.stack([getattr(part, name) for part in parts]).mean(0) for name in ("moments", "outputs"))
    return Observed(
        (min(lows), max(highs)), torch.cat([part.sample for part in parts]), moments, outputs, parts[0].by_rows
    )
