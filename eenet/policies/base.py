"""The contract of a policy: it decides at each node from what is known there, never from later ones."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.tree import Tree


class Policy(nn.Module, ABC):
    """Decides, exit by exit, which samples leave, and in a tree that branches where the others go.

    Attributes:
        reads_predictions: Whether `decide` looks at predicted classes; where it does not, none are computed.
        tree: The tree that it is made for; `None` for one that leaves or goes on, along any chain.
        first_node: Where it sends every sample, of which nothing is known before.
    """

    reads_predictions: ClassVar[bool] = False
    tree: Tree | None = None
    first_node: int = 0

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that make this policy again, as plain JSON values."""
        return {}

    def check(self, num_exits: int) -> None:
        """Raise a `UserError` where the policy is made for another number of exits than the network has."""

    def keeping(self, exits: Sequence[int]) -> "Policy":
        """The policy for a network with only some of the early exits; the same unless it has a part for each."""
        return self

    @abstractmethod
    def start(self, scores: Tensor) -> Memory:
        """The memory before the first exit; `scores` `(batch,)` gives the batch size and the device."""

    @abstractmethod
    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Decide at one exit (any but the last, where everybody leaves).

        Args:
            exit: Number of the exit, from 0; where the tree branches, of the place.
            predictions: The exit's predicted classes, `(batch,)`; the scores where the policy does not read them.
            scores: The exit's gate scores, `(batch,)`, or what else the gate gives.
            memory: What `start` or the previous exit returned, for the same samples.

        Returns:
            Which samples leave, bool `(batch,)`, and the new memory. Of a policy with a `tree` the next node of each,
            int64 `(batch,)`: its own for one that leaves.
        """

    def knobs(self, scores: Tensor) -> Tensor:
        """Settings of the one parameter that a budget is met with, from the cheapest policy to the dearest.

        Args:
            scores: Gate scores of the validation samples, `(samples, exits - 1)`.

        Returns:
            Float64 `(settings,)`; the mean cost never falls from one to the next.

        Raises:
            UserError: The policy has no such parameter.
        """
        raise UserError("policy", type(self).__name__, "has no parameter that trades accuracy for cost")

    def turned(self, knob: float) -> "Policy":
        """This policy with another setting of that parameter."""
        raise NotImplementedError

    def departures(self, predictions: Tensor, scores: Tensor, knobs: Tensor) -> Tensor:
        """With how many of the knobs, from the first on, each sample has left by each early exit.

        A sample never leaves earlier when the knob grows, so that these numbers say where it leaves with any of them.

        Args:
            predictions: Predicted classes, `(samples, exits)`.
            scores: Gate scores, `(samples, exits - 1)`.
            knobs: From `knobs`, increasing.

        Returns:
            Int64 `(samples, exits - 1)`, never falling from one exit to the next.
        """
        found = scores.new_zeros(scores.shape, dtype=torch.long)
        early = torch.arange(scores.shape[1], device=scores.device)

        def exits_of(rows: Tensor, knob: int) -> Tensor:
            return self.turned(knobs[knob].item()).exits(predictions[rows], scores[rows])

        def count(rows: Tensor, first: Tensor, last: Tensor, start: int, stop: int) -> None:
            same, middle = first == last, (start + stop) // 2
            found[rows[same]] += (stop - start) * (first[same].unsqueeze(1) <= early)
            if not same.all():  # only samples that some knob between the two moves are looked at again
                rows, first, last = rows[~same], first[~same], last[~same]
                count(rows, first, exits_of(rows, middle - 1), start, middle)
                count(rows, exits_of(rows, middle), last, middle, stop)

        rows = torch.arange(len(scores), device=scores.device)
        count(rows, exits_of(rows, 0), exits_of(rows, len(knobs) - 1), 0, len(knobs))
        return found

    def exits(self, predictions: Tensor, scores: Tensor) -> Tensor:
        """The exit of each sample when all exits have been computed, as in validation.

        Args:
            predictions: Predicted classes, `(batch, exits)`.
            scores: Gate scores, `(batch, exits - 1)`.

        Returns:
            Exit numbers, int64 `(batch,)`; of a policy with a `tree`, numbers of nodes.
        """
        batch, num_exits = predictions.shape
        exits = torch.full((batch,), num_exits - 1, device=predictions.device)
        if num_exits == 1:
            return exits
        memory = self.start(scores[:, 0])
        undecided = torch.ones_like(exits, dtype=torch.bool)
        for exit in range(num_exits - 1):
            leave, memory = self.decide(exit, predictions[:, exit], scores[:, exit], memory)
            exits = torch.where(undecided & leave, exit, exits)
            undecided &= ~leave
        return exits
