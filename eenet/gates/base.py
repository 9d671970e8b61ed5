"""The contract of a gate."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from eenet.described import Described
from eenet.errors import UserError

Memory = Any
"""What a gate or a policy carries from exit to exit: a pytree of tensors whose first axis is the batch."""

GateInput = Literal["logits", "known", "steps"]
"""What a gate reads at an exit: its logits, what is `Known` there, or, in a decoder, the similarity of the last layer's
output and input."""


class Known(NamedTuple):
    """What is known of samples at an exit.

    Attributes:
        statistics: `eenet.gates.uncertainty_statistics` of its logits, `(samples, 4)`.
        features: What its head reads, pooled, `(samples, dim)`.
        log_probabilities: Of all classes, `(samples, classes)`.
        passed: The `row` of each exit before, from the first.
    """

    statistics: Tensor
    features: Tensor
    log_probabilities: Tensor
    passed: tuple[Tensor, ...] = ()

    @property
    def row(self) -> Tensor:
        """All that the exit itself says, `(samples, 4 + classes + dim)`."""
        return torch.cat([self.statistics, self.log_probabilities, self.features.to(self.statistics)], dim=1)

    def take(self, rows: Any) -> "Known":
        """Some of the samples."""
        own = (self.statistics[rows], self.features[rows], self.log_probabilities[rows])
        return Known(*own, tuple(values[rows] for values in self.passed))


class Gate(Described, nn.Module, ABC):
    """The gates of all exits but the last, held together so that they can be trained in one kernel.

    Args:
        num_gates: One per exit but the last.

    Attributes:
        reads: What stands for the exits' logits below.
    """

    reads: ClassVar[GateInput] = "logits"

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        self.num_gates = num_gates

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that make this gate again, weights aside, as plain JSON values."""
        return {"num_gates": self.num_gates}

    def keeping(self, exits: Sequence[int]) -> "Gate":
        """The gates of some exits, for a network that has no others.

        Raises:
            UserError: They read other exits than their own.
        """
        raise UserError("place", True, f"is for gates that read their exit alone, not for {type(self).__name__}")

    def start(self, logits: Tensor) -> Memory:
        """The memory before the first exit, from the first exit's logits; a gate without memory keeps nothing."""
        return ()

    def forward(self, logits: Tensor) -> Tensor:
        """Scores of every gate, `(batch, gates)`, from the exits' logits, `(batch, gates, classes)`.

        They are those of `at` in turn; a gate whose scores do not depend on each other computes them at once instead.
        """
        memory, scores = self.start(logits[:, 0]), []
        for exit in range(self.num_gates):
            score, memory = self.at(exit, logits[:, exit], memory)
            scores.append(score)
        return torch.stack(scores, dim=1)

    @abstractmethod
    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """What `route` calls: the score of one gate.

        Args:
            exit: Number of the exit, from 0; where the tree branches, of the place.
            logits: That exit's logits, `(batch, classes)`.
            memory: What `start` or the previous exit returned, for the same samples.

        Returns:
            Scores `(batch,)` and the new memory.
        """

    def answer(self, logits: Tensor, memory: Memory) -> Tensor:
        """Logits that a sample is answered with where it leaves, `(batch, classes)`: the exit's own by default.

        Args:
            logits: The exit's.
            memory: What `at` returned there.
        """
        return logits

    def answers(self, logits: Tensor) -> Tensor:
        """The same at every gate, `(batch, gates, classes)`."""
        return logits
