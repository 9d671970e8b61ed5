"""The contract of a gate."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Gate(nn.Module, ABC):
    """The gates of all exits but the last, held together so that they can be trained in one kernel.

    Args:
        num_gates: One per exit but the last.
    """

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        self.num_gates = num_gates

    @abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """Scores of every gate, `(batch, gates)`, from the exits' logits, `(batch, gates, classes)`."""

    @abstractmethod
    def at(self, exit: int, logits: Tensor) -> Tensor:
        """Score of one gate, `(batch,)`, from its own exit's logits, `(batch, classes)`: what `route` calls."""
