"""Leave when the score reaches the threshold of the predicted class."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy


class ClassThresholds(Policy):
    """Leave at the first exit whose score is at least a threshold and the predicted class's offset.

    Args:
        threshold: What all classes share; as text where it is infinite.
        offsets: Of each class, added to it.

    Raises:
        UserError: The threshold is no number, or an offset no finite one.

    Example:
        >>> policy = ClassThresholds(0.5, [0.0, 0.4])
        >>> policy.exits(torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0.7], [0.7]])).tolist()
        [0, 1]
    """

    reads_predictions: ClassVar[bool] = True
    offsets: Tensor

    def __init__(self, threshold: float | str, offsets: Sequence[float]) -> None:
        super().__init__()
        self.threshold = float(threshold)
        if self.threshold != self.threshold:
            raise UserError("policy.threshold", threshold, "must be a number")
        self.register_buffer("offsets", torch.tensor(list(offsets), dtype=torch.float64), persistent=False)
        if not self.offsets.isfinite().all():
            raise UserError("policy.offsets", list(offsets), "must be finite numbers")

    def arguments(self) -> dict[str, Any]:
        """The threshold and the offsets."""
        threshold = self.threshold if abs(self.threshold) < float("inf") else str(self.threshold)
        return {"threshold": threshold, "offsets": self.offsets.tolist()}

    def knobs(self, scores: Tensor) -> Tensor:
        """2,001 thresholds from the least score less the largest offset on, and two for everybody and nobody."""
        ends = scores.new_tensor([float("inf")], dtype=torch.float64)
        known = scores[scores.isfinite()].double()
        least, most = known.min() - self.offsets.max(), known.max() - self.offsets.min()
        inner = torch.linspace(least.item(), most.item(), 2001, dtype=torch.float64, device=scores.device)
        return torch.cat([-ends, inner, ends])

    def turned(self, knob: float) -> "ClassThresholds":
        """The same offsets from another threshold."""
        return ClassThresholds(knob, self.offsets.tolist())

    def departures(self, predictions: Tensor, scores: Tensor, knobs: Tensor) -> Tensor:
        """Counted among the knobs, which the scores less their classes' offsets have to reach."""
        found = scores.double() - self.offsets.to(scores.device)[predictions[:, : scores.shape[1]]]
        return torch.searchsorted(knobs.to(found), found, right=True).cummax(1).values

    def start(self, scores: Tensor) -> Memory:
        """Nothing to remember."""
        return ()

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Compare the scores less their classes' offsets with the threshold."""
        return scores.double() - self.offsets.to(scores.device)[predictions] >= self.threshold, memory
