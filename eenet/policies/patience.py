"""Leave when several exits in a row agree (PABEE: Zhou et al., NeurIPS 2020)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy


class Patience(Policy):
    """Leave at the first exit whose prediction equals those of `patience` exits directly before it.

    Scores are not looked at.

    Args:
        patience: Earlier exits that have to agree, at least 1.

    Raises:
        UserError: Patience below 1.
    """

    reads_predictions: ClassVar[bool] = True

    def __init__(self, patience: int = 1) -> None:
        super().__init__()
        if patience < 1:
            raise UserError("policy.patience", patience, "must be at least 1 agreeing exit")
        self.patience = patience

    def arguments(self) -> dict[str, Any]:
        """The patience."""
        return {"patience": self.patience}

    def knobs(self, scores: Tensor) -> Tensor:
        """Patience 1 to the number of early exits, with which nobody leaves early."""
        return torch.arange(1, scores.shape[1] + 1, dtype=torch.float64, device=scores.device)

    def turned(self, knob: float) -> "Patience":
        """Another patience."""
        return Patience(int(knob))

    def start(self, scores: Tensor) -> Memory:
        """The last prediction and the number of exits before it that agree with it, `(batch,)` each."""
        nothing = torch.full_like(scores, -1, dtype=torch.long)
        return nothing, nothing

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Count the agreeing exits."""
        last, agreeing = memory
        agreeing = torch.where(predictions == last, agreeing + 1, 0)
        return agreeing >= self.patience, (predictions, agreeing)
