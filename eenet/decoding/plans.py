"""Which layers of a decoder run: the families of plans and their notation."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from eenet.errors import UserError

NOTATION = "full, strided:K, uniform:K, early:K, random:K:SEED, or layers such as 0,1,5-29"


@dataclass(frozen=True)
class LayerPlan:
    """The layers that run, in order; the others pass the hidden state on unchanged.

    Attributes:
        layers: Increasing layer numbers from 0; at least one.
        num_layers: Layers of the decoder.

    Raises:
        UserError: No layer, or layers out of range or order.

    Example:
        >>> plan = LayerPlan((0, 1, 5), 6)
        >>> len(plan), str(plan), plan == parse_plan(str(plan), 6)
        (3, '0-1,5', True)
    """

    layers: tuple[int, ...]
    num_layers: int

    def __post_init__(self) -> None:
        if not self.layers:
            raise UserError("plan", self.layers, "runs no layer; name at least one")
        outside = [layer for layer in self.layers if not 0 <= layer < self.num_layers]
        if outside:
            raise UserError("plan", self.layers, f"the decoder has layers 0 to {self.num_layers - 1}, not {outside}")
        if list(self.layers) != sorted(set(self.layers)):
            ordered = ",".join(map(str, sorted(set(self.layers))))
            raise UserError("plan", self.layers, f"layers run once and in order, such as {ordered}")

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        runs: list[list[int]] = []
        for layer in self.layers:
            if runs and layer == runs[-1][1] + 1:
                runs[-1][1] = layer
            else:
                runs.append([layer, layer])
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def full_plan(num_layers: int) -> LayerPlan:
    """Every layer."""
    return LayerPlan(tuple(range(num_layers)), num_layers)


def early_exit(num_layers: int, k: int) -> LayerPlan:
    """The first `k` layers.

    Example:
        >>> early_exit(8, 3).layers
        (0, 1, 2)
    """
    return LayerPlan(tuple(range(_check_budget(num_layers, k))), num_layers)


def strided_skipping(num_layers: int, k: int) -> LayerPlan:
    """Every `num_layers / k`-th layer from the first on, as arXiv 2410.20022 skips: the last layer is left out too.

    Example:
        >>> strided_skipping(8, 4).layers, strided_skipping(8, 3).layers
        ((0, 2, 4, 6), (0, 2, 5))
    """
    return LayerPlan(tuple(i * num_layers // _check_budget(num_layers, k) for i in range(k)), num_layers)


def uniform_skipping(num_layers: int, k: int) -> LayerPlan:
    """`k` layers spread evenly over the depth; the first and, from two on, the last are kept.

    Example:
        >>> uniform_skipping(8, 4).layers, uniform_skipping(8, 1).layers
        ((0, 2, 5, 7), (0,))
    """
    gaps = max(_check_budget(num_layers, k) - 1, 1)
    return LayerPlan(tuple((2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(k)), num_layers)


def random_layers(num_layers: int, k: int, seed: int) -> LayerPlan:
    """`k` layers drawn without replacement, all sets alike: the control of the planned families.

    Example:
        >>> len(random_layers(8, 3, seed=0)), random_layers(8, 3, seed=0) == random_layers(8, 3, seed=0)
        (3, True)
    """
    drawn = random.Random(seed).sample(range(num_layers), _check_budget(num_layers, k))
    return LayerPlan(tuple(sorted(drawn)), num_layers)


def ranked_skipping(scores: Sequence[float], k: int) -> LayerPlan:
    """Drop the layers whose removal moves the hidden state least, and keep `k`.

    Args:
        scores: How much each layer moves the hidden state, from `layer_movement`; of equals the earlier is kept.
        k: Layers to keep.

    Example:
        >>> ranked_skipping([0.9, 0.1, 0.3, 0.5], 2).layers
        (0, 3)
    """
    order = sorted(range(len(scores)), key=lambda layer: -scores[layer])
    return LayerPlan(tuple(sorted(order[: _check_budget(len(scores), k)])), len(scores))


def parse_plan(text: str, num_layers: int) -> LayerPlan:
    """Read a plan from text.

    Args:
        text: `full`, `strided:K`, `uniform:K`, `early:K`, `random:K:SEED`, or layers and ranges such as `0,1,5-29`.
        num_layers: Layers of the decoder.

    Raises:
        UserError: Another notation, or a plan that the decoder cannot run.

    Example:
        >>> parse_plan("0,2-4", 6).layers, parse_plan("early:2", 6).layers
        ((0, 2, 3, 4), (0, 1))
    """
    name, *arguments = text.strip().split(":")
    try:
        numbers = [int(argument) for argument in arguments]
        if name == "full" and not numbers:
            return full_plan(num_layers)
        if name in _BY_BUDGET and len(numbers) == 1:
            return _BY_BUDGET[name](num_layers, *numbers)
        if name == "random" and len(numbers) == 2:
            return random_layers(num_layers, *numbers)
        if numbers:
            raise ValueError(name)
        ranges = [[int(end) for end in part.split("-")] for part in name.split(",")]
        spans = [range(first, last + 1) for first, last in ((ends[0], ends[-1]) for ends in ranges if len(ends) < 3)]
    except ValueError as error:
        raise UserError("plan", text, f"is no plan; write {NOTATION}") from error
    if len(spans) != len(ranges) or not all(spans):
        raise UserError("plan", text, f"is no plan; write {NOTATION}")
    if any(span[-1] >= num_layers for span in spans):
        raise UserError("plan", text, f"the decoder has layers 0 to {num_layers - 1}")
    return LayerPlan(tuple(layer for span in spans for layer in span), num_layers)


def _check_budget(num_layers: int, k: int) -> int:
    if not 1 <= k <= num_layers:
        raise UserError("plan", k, f"a plan runs 1 to {num_layers} of the decoder's layers")
    return k


_BY_BUDGET = {"strided": strided_skipping, "uniform": uniform_skipping, "early": early_exit}
