"""JEI-DNN's reading of the gates: a distribution over exits, and the decision that follows from it."""

from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy


def exit_distribution(gate_logits: Tensor) -> Tensor:
    """Probability of leaving at each exit, `P_l = clip(min(g_l, 1 - sum_{i<l} g_i), 0)`, the last exit taking the rest.

    JEI-DNN, section 4.1; `g_l` is the sigmoid of gate logit `l`.

    Args:
        gate_logits: `(batch, exits - 1)`.

    Returns:
        `(batch, exits)`, each row summing to 1.

    Example:
        >>> exit_distribution(torch.tensor([[0.0, 0.0, 0.0]])).tolist()
        [[0.5, 0.5, 0.0, 0.0]]
    """
    g = gate_logits.sigmoid()
    taken = g.cumsum(-1) - g
    early = torch.minimum(g, (1 - taken).clamp_min(0))
    last = (1 - early.sum(-1, keepdim=True)).clamp_min(0)
    return torch.cat([early, last], dim=-1)


class SequentialGates(Policy):
    """Leave at the first exit whose conditional exit probability is at least one half (JEI-DNN, section 4.1).

    Args:
        shift: Added to every gate logit; above 0 samples leave earlier.
        clip: Take what the gates before have taken from a gate's mass, as the paper does. Gates learn to leave here *or
            before*; without the clip each is read as that: leave where it is at least one half. [inferred]

    Raises:
        UserError: The shift is not a finite number.
    """

    def __init__(self, shift: float = 0.0, clip: bool = True) -> None:
        super().__init__()
        if not abs(shift) < float("inf"):
            raise UserError("policy.shift", shift, "must be a finite number")
        self.shift, self.clip = shift, clip

    def arguments(self) -> dict[str, Any]:
        """The shift, and whether it clips."""
        return {"shift": self.shift, "clip": self.clip}

    def knobs(self, scores: Tensor) -> Tensor:
        """Minus the shifts that matter for these gate logits, 2,001 of them."""
        reach = scores.abs().max().double().item() + 20 if scores.numel() else 20.0
        return torch.linspace(-reach, reach, 2001, dtype=torch.float64, device=scores.device)

    def turned(self, knob: float) -> "SequentialGates":
        """The gates shifted by minus the knob."""
        return SequentialGates(-knob, self.clip)

    def start(self, scores: Tensor) -> Memory:
        """Probability mass not yet taken, `(batch,)`."""
        return torch.ones_like(scores)

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Compare the exit's share of the remaining mass, `min(g, rest) / rest`, with one half."""
        g = (scores + self.shift).sigmoid()
        return 2 * g >= memory, (memory - g).clamp_min(0) if self.clip else memory
