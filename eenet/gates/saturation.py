"""The gate of CALM that needs no prediction: how little the layer before an exit has moved the hidden state."""

from typing import ClassVar

from torch import Tensor

from eenet.gates.base import GateInput, Memory
from eenet.gates.confidence import ConfidenceGate


class SaturationGate(ConfidenceGate):
    """Scores an exit by the cosine similarity of its layer's output and input (CALM, Schuster et al. 2022).

    It is for decoders, whose heads are dear: tokens that go on run no head.

    Args:
        num_gates: One per exit but the last.

    Example:
        >>> import torch
        >>> SaturationGate(2)(torch.tensor([[0.25, 0.75]])).tolist()
        [[0.25, 0.75]]
    """

    reads: ClassVar[GateInput] = "steps"

    def __init__(self, num_gates: int) -> None:
        super().__init__(num_gates)

    def arguments(self) -> dict[str, int]:
        """Number of gates."""
        return {"num_gates": self.num_gates}

    def forward(self, logits: Tensor) -> Tensor:
        """The similarities, `(batch, gates)`, as they are; they stand in the place of logits."""
        return logits

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """The similarity at one exit, `(batch,)`, as it is."""
        return logits, memory
