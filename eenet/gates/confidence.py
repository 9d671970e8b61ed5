"""The gate without parameters: the exit's confidence in its own prediction."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from eenet.errors import UserError
from eenet.gates.base import Gate, Memory

Measure = Literal["max_probability", "entropy", "margin", "max_logit"]


def confidence(logits: Tensor, measure: Measure = "max_probability") -> Tensor:
    """How sure a softmax is, higher for surer.

    Args:
        logits: `(..., classes)`.
        measure: `max_probability`; `entropy` for minus the entropy in nats; `margin` for the top probability minus
            the second; `max_logit` for the largest logit as it is.

    Returns:
        `(...,)`.

    Example:
        >>> import torch
        >>> confidence(torch.zeros(1, 4)).tolist(), confidence(torch.zeros(1, 4), "margin").tolist()
        ([0.25], [0.0])
    """
    if measure == "entropy":
        log_p = F.log_softmax(logits, dim=-1)
        return (log_p.exp() * log_p).sum(-1)
    if measure == "max_logit":
        return logits.amax(-1)
    p = logits.softmax(-1)
    if measure == "max_probability":
        return p.amax(-1)
    top = p.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


class ConfidenceGate(Gate):
    """Scores an exit by the confidence of its own softmax; thresholds are the policy's.

    Args:
        num_gates: One per exit but the last.
        measure: `max_probability`, `entropy`, `margin` or `max_logit`.

    Raises:
        UserError: Unknown measure.
    """

    def __init__(self, num_gates: int, measure: Measure = "max_probability") -> None:
        super().__init__(num_gates)
        if measure not in get_args(Measure):
            raise UserError("gate.measure", measure, f"must be one of {', '.join(get_args(Measure))}")
        self.measure = measure

    def arguments(self) -> dict[str, Any]:
        """Number of gates and measure."""
        return {**super().arguments(), "measure": self.measure}

    def keeping(self, exits: Sequence[int]) -> "ConfidenceGate":
        """Fewer of the same."""
        return ConfidenceGate(len(exits), self.measure)

    def forward(self, logits: Tensor) -> Tensor:
        """Confidences `(batch, gates)`."""
        return confidence(logits, self.measure)

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Confidence of one exit, `(batch,)`."""
        return confidence(logits, self.measure), memory
