"""The gate of optimal stopping: what leaving gains, predicted from what is known at the exit."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.gates.base import Gate, Memory
from eenet.gates.uncertainty import figures_of

FIGURES = 6
"""Figures of an exit's softmax beside the roots of its probabilities."""

AGREEMENT = 3
"""Figures of how an exit's prediction agrees with those before."""


class Passed(NamedTuple):
    """What is remembered of the exits passed.

    Attributes:
        described: Of the exit before, from `describe`, `(batch, 6 + classes)`; zeros before the first.
        prediction: Its predicted class, `(batch, 1)`; -1 before the first.
        run: Exits before it, in a row, that agree with it, `(batch, 1)`.
        answer: Logits of the exit passed whose answer is kept, `(batch, classes)`; empty without recall.
    """

    described: Tensor
    prediction: Tensor
    run: Tensor
    answer: Any


def describe(logits: Tensor) -> Tensor:
    """What a softmax says: six figures, then the square roots of all probabilities.

    The figures are those of `uncertainty_statistics`, the log-odds of the maximum probability (from -5 to 12) and the
    logarithm of its ratio to the second (at most 12).

    Args:
        logits: `(..., classes)`.

    Returns:
        `(..., 6 + classes)`.

    Example:
        >>> describe(torch.zeros(1, 4))[0, 4:].tolist()  # doctest: +ELLIPSIS
        [-1.098..., 0.0, 0.5, 0.5, 0.5, 0.5]
    """
    log_p = F.log_softmax(logits, dim=-1)
    p = log_p.exp()
    top = p.topk(2, dim=-1).values
    figures = figures_of(log_p, p, top)
    others = torch.cat([1 - figures[0], top[..., 1:]], dim=-1)
    odds_and_ratio = (figures[0] / others).log().clamp(-5, 12)  # the ratio's is at least 0
    return torch.cat([*figures, odds_and_ratio, p.sqrt()], dim=-1)


class StoppingGate(Gate):
    """Scores an exit by the predicted value of going on less that of leaving, linear in what is known there.

    A sample leaves best where the score is at least 0; a threshold of another value meets another budget. The weights
    come from `eenet.calibration.fit_stopping`, and no gradient changes them.

    Args:
        num_gates: One per exit but the last.
        num_classes: Classes of the logits.
        memory: Read the exit before and the agreement of predictions too.
        recall: Let a sample be answered by any exit it has passed (arXiv 2509.22992); needs the memory.
        probabilities: Read the roots of all probabilities too; a vocabulary of tokens has too many for a regression.

    Example:
        >>> StoppingGate(3, 10)(torch.zeros(2, 3, 10)).shape
        torch.Size([2, 3])
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_gates: int,
        num_classes: int,
        memory: bool = True,
        recall: bool = False,
        probabilities: bool = True,
    ) -> None:
        super().__init__(num_gates)
        self.num_classes, self.memory, self.recall = num_classes, memory, recall
        self.probabilities = probabilities
        self.register_buffer("weight", torch.zeros(num_gates, 1 + recall, self.num_inputs))
        self.register_buffer("bias", torch.zeros(num_gates, 1 + recall))

    @property
    def num_inputs(self) -> int:
        """Figures that are known at an exit."""
        own = self._per_exit
        return 2 * own + AGREEMENT + 2 * self.recall if self.memory else own

    @property
    def _per_exit(self) -> int:
        return FIGURES + self.num_classes * self.probabilities

    def arguments(self) -> dict[str, Any]:
        """Number of gates, classes, what is remembered and what is read."""
        own = {"num_classes": self.num_classes, "memory": self.memory, "recall": self.recall}
        return {**super().arguments(), **own, "probabilities": self.probabilities}

    def start(self, logits: Tensor) -> Memory:
        """Nothing passed yet, from the first exit's logits."""
        if not self.memory:
            return ()
        nothing = torch.full_like(logits[:, :1], -1, dtype=torch.long)
        described = logits.new_zeros(logits.shape[0], FIGURES + self.num_classes)
        return Passed(described, nothing, torch.zeros_like(logits[:, :1]), logits if self.recall else ())

    def known(self, logits: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """What is known at an exit.

        Args:
            logits: The exit's logits, `(batch, classes)`.
            memory: What `start` or the exit before gave.

        Returns:
            `(batch, num_inputs)`, and what is remembered behind it; the answer is still that before.
        """
        described = describe(logits)
        if not self.memory:
            return described[:, : self._per_exit], memory
        passed = Passed(*memory)
        prediction = logits.argmax(-1, keepdim=True)
        agrees = (prediction == passed.prediction).to(logits.dtype)
        run = agrees * (passed.run + 1)
        root = passed.described[:, FIGURES:].gather(1, prediction)
        both = [row[:, : self._per_exit] for row in (described, passed.described)]
        parts = [*both, agrees, root.square(), run]
        if self.recall:
            kept = passed.answer.argmax(-1, keepdim=True)
            own = described[:, FIGURES:].gather(1, kept).square()
            parts += [own, passed.answer.softmax(-1).amax(-1, keepdim=True)]
        return torch.cat(parts, dim=1), Passed(described, prediction, run, passed.answer)

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Score of one exit, `(batch,)`; with recall the answer that is remembered is the better one from here on."""
        return self.score(exit, logits, *self.known(logits, memory))

    def score(self, exit: int, logits: Tensor, known: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """As `at`, from what is known there."""
        found = F.linear(known, self.weight[exit], self.bias[exit])
        if self.recall:
            memory = memory._replace(answer=torch.where(found[:, 1:] >= 0, logits, memory.answer))
        return found[:, 0], memory

    def answer(self, logits: Tensor, memory: Memory) -> Tensor:
        """Logits of the exit passed whose prediction is trusted most; without recall the exit's own."""
        return Passed(*memory).answer if self.recall else logits

    def answers(self, logits: Tensor) -> Tensor:
        """The same at every exit."""
        if not self.recall:
            return logits
        memory, found = self.start(logits[:, 0]), []
        for exit in range(self.num_gates):
            _, memory = self.at(exit, logits[:, exit], memory)
            found.append(memory.answer)
        return torch.stack(found, dim=1)
