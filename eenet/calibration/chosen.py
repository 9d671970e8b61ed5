"""What an operating point was chosen on, and whether that is what it is about to be used with."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from eenet.files import tensor_digest
from eenet.rank_zero import rank_zero_warn

FITTED = ("gate.predictors.", "connection.ensemble.")
"""What the names begin with of what is fitted on top of a network's weights."""


@dataclass(frozen=True)
class ChosenOn:
    """The validation that chose an operating point.

    Attributes:
        weights: Digest of the network's weights, from `weights_digest`.
        split: Fingerprint of the validation split; `None` where the data have none.
        samples: How many samples it had.
    """

    weights: str
    split: str | None
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def objection(chosen: ChosenOn | None, weights: str, split: str | None) -> str | None:
    """Why a point is not to be used with some weights and data; `None` where it may be.

    Args:
        chosen: What the point was chosen on.
        weights: Digest of the weights that are there.
        split: Fingerprint of the validation split that is there, `None` where that is not known.

    Example:
        >>> objection(ChosenOn("ab", "cd", 100), "ab", "cd"), objection(ChosenOn("ab", "cd", 100), "ba", "cd")
        (None, 'it was chosen on other weights')
    """
    if chosen is None:
        return "no whole validation has chosen it"
    if chosen.weights != weights:
        return "it was chosen on other weights"
    if None not in (chosen.split, split) and chosen.split != split:
        return "it was chosen on another validation split"
    return None


def weights_digest(state: Mapping[str, Tensor], prefix: str = "") -> str:
    """SHA-256 of a network's weights in the order of their names; other precisions count as the same values in float32.

    Predictors of QuEE and ensembles of Zero Time Waste are left out: they are fitted when all else is trained, as
    thresholds are, on top of the weights.

    Args:
        state: The network's state, or that of a whole routine.
        prefix: Of the network's names in it.

    Example:
        >>> import torch
        >>> one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
        >>> half = {"network.b": torch.tensor(3), "network.a": torch.tensor([1.0, 2.0]).bfloat16(), "other": one["a"]}
        >>> weights_digest(one) == weights_digest(half, "network.") == weights_digest({**one, "a": one["a"].double()})
        True
        >>> weights_digest(one) == weights_digest({**one, "a": torch.tensor([1.0, 2.5])})
        False
    """
    names = sorted(name for name in state if name.startswith(prefix))
    kept = ((name.removeprefix(prefix), state[name]) for name in names)
    return tensor_digest((name, _widened(values)) for name, values in kept if not name.startswith(FITTED))


def _widened(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values


def warn_nobody_leaves(shares: Mapping[str, list[float]]) -> None:
    """Warn of points at which no validation sample leaves early, by the shares that leave at each exit."""
    for name, found in shares.items():
        if len(found) > 1 and found[-1] == 1:
            rank_zero_warn(f"at {name} no validation sample leaves early: it costs more than the full network")


def warn_guessing(full: Mapping[str, Any], num_classes: int) -> None:
    """Warn where a frozen network's own head does no better than guessing on validation: its weights are others."""
    samples, guess = sum(full["bins"]["count"]), 1 / num_classes
    if full["balanced_accuracy"] <= guess + 2 * math.sqrt(guess * (1 - guess) / samples):
        rank_zero_warn(
            f"the frozen backbone finds {100 * full['balanced_accuracy']:.1f} % of each of {num_classes} classes on "
            f"{samples} validation samples, as guessing does: are its weights there? Name the run that trained it in "
            "model.backbone_checkpoint"
        )
