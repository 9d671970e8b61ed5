"""Random routing: the control that every gate has to beat."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy


class RandomExits(Policy):
    """Each sample leaves at an exit drawn from given shares, whatever it looks like.

    Args:
        shares: Probability of leaving at each exit, the last included.

    Raises:
        UserError: A share is negative, or they do not sum to 1.
    """

    shares: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        values = torch.tensor([float(share) for share in shares], dtype=torch.float64)
        if not (values >= 0).all() or abs(values.sum().item() - 1) > 1e-6:
            raise UserError("policy.shares", list(shares), "must be probabilities that sum to 1")
        self.register_buffer("shares", values)

    def arguments(self) -> dict[str, Any]:
        """The shares."""
        return {"shares": self.shares.tolist()}

    def check(self, num_exits: int) -> None:
        """One share per exit."""
        if len(self.shares) != num_exits:
            raise UserError("policy.shares", self.shares.tolist(), f"{num_exits} are needed, one per exit")

    def start(self, scores: Tensor) -> Memory:
        """The exit drawn for each sample, from torch's random state."""
        return torch.multinomial(self.shares.to(scores.device), scores.shape[0], replacement=True)

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Leave if this exit was drawn."""
        return memory == exit, memory
