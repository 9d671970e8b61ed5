"""The static network: everybody leaves at one exit."""

from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy


class FixedExit(Policy):
    """All samples leave at one exit, the last by default: the full network.

    Args:
        exit: Number of the exit, from 0; -1 is the last.
    """

    def __init__(self, exit: int = -1) -> None:
        super().__init__()
        self.exit = exit

    def arguments(self) -> dict[str, Any]:
        """The exit."""
        return {"exit": self.exit}

    def check(self, num_exits: int) -> None:
        """The exit must be there."""
        if not -1 <= self.exit < num_exits:
            raise UserError("policy.exit", self.exit, f"the network has exits 0 to {num_exits - 1} (-1 is the last)")

    def start(self, scores: Tensor) -> Memory:
        """Nothing to remember."""
        return ()

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Leave if this is the exit."""
        return torch.full_like(scores, exit == self.exit, dtype=torch.bool), memory
