"""Leave when the gate's score reaches a threshold."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy


class Threshold(Policy):
    """Leave at the first exit whose score is at least its threshold.

    Args:
        thresholds: One per exit but the last, on the scale of the gate's scores.

    Raises:
        UserError: A threshold is not a number.
    """

    def __init__(self, thresholds: Sequence[float | str]) -> None:
        super().__init__()
        values = torch.tensor([float(value) for value in thresholds], dtype=torch.float32)
        if values.isnan().any():
            raise UserError("policy.thresholds", list(thresholds), "each must be a number")
        self.thresholds = values
        self._limits: list[float] = values.tolist()

    def arguments(self) -> dict[str, Any]:
        """The thresholds; the infinite ones, for which JSON has no number, as text."""
        return {
            "thresholds": [value if abs(value) < float("inf") else str(value) for value in self.thresholds.tolist()]
        }

    def check(self, num_exits: int) -> None:
        """One threshold per exit but the last."""
        if len(self.thresholds) != num_exits - 1:
            raise UserError(
                "policy.thresholds",
                self.thresholds.tolist(),
                f"{num_exits - 1} are needed for the network's {num_exits} exits, got {len(self.thresholds)}",
            )

    def keeping(self, exits: Sequence[int]) -> "Threshold":
        """The thresholds of some exits."""
        return Threshold(self.thresholds[list(exits)].tolist())

    def knobs(self, scores: Tensor) -> Tensor:
        """Every distance of an observed score from its threshold, and two that let everybody leave and nobody."""
        distances = (scores.double() - self.thresholds.double().to(scores.device)).flatten().unique()
        distances = distances[distances.isfinite()]
        ends = distances.new_tensor([float("inf")])
        return torch.cat([-ends, distances, ends])

    def turned(self, knob: float) -> "Threshold":
        """All thresholds raised by the knob; an infinite one is what they become."""
        if math.isinf(knob):
            return Threshold([knob] * len(self.thresholds))
        return Threshold((self.thresholds.double() + knob).tolist())

    def departures(self, predictions: Tensor, scores: Tensor, knobs: Tensor) -> Tensor:
        """Counted among each exit's limits, which its scores have to reach."""
        raised = self.thresholds.double().to(knobs.device).unsqueeze(1) + knobs
        limits = torch.where(knobs.isinf(), knobs, raised).to(scores)
        return torch.searchsorted(limits, scores.T.contiguous(), right=True).T.cummax(1).values

    def start(self, scores: Tensor) -> Memory:
        """Nothing to remember."""
        return ()

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Compare the scores with this exit's threshold."""
        return scores >= self._limits[exit], memory
