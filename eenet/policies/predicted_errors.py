"""Go where the predicted error plus the priced cost is least (QuEE, Regol et al., arXiv 2406.14404)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy
from eenet.tree import Path, Tree

TRADEOFFS = [0.0, *torch.logspace(-3, 2, 41, dtype=torch.float64).tolist()]
"""Values of lambda that are compared."""


class PredictedErrors(Policy):
    """At each node, of the nodes that can still be reached, aim at the one with the least `error + lambda * cost`.

    A sample leaves where it aims at its own node, and else makes one step. It reads an `eenet.gates.ErrorGate`.

    Args:
        first_width: Of the first segment, before which nothing is known of a sample. [inferred]
        tradeoff: lambda, the price of the full network's cost in units of the error probability.
        nodes: Paths of the tree, as `Tree.nodes`.
        costs: Of leaving at each node, as fractions of the full network's, in any unit.

    Raises:
        UserError: No segment begins at the first width, lambda is negative or infinite, or there is no cost for each
            node.

    Example:
        >>> policy = PredictedErrors(8, 1.0, [(8,), (8, 8), (8, 4)], [0.1, 0.4, 0.2])
        >>> errors = torch.tensor([[[0.5, 0.1, 0.4]], [[0.2, 0.1, 0.2]]])
        >>> policy.exits(torch.zeros(2, 3), errors).tolist()
        [1, 0]
    """

    tree: Tree
    prices: Tensor
    onward: Tensor

    def __init__(
        self, first_width: int, tradeoff: float, nodes: Sequence[Sequence[int]], costs: Sequence[float]
    ) -> None:
        super().__init__()
        self.tree, onward = _moves(tuple(map(tuple, nodes)))
        tree = self.tree
        if (first_width,) not in tree.index:
            known = sorted({path[0] for path in tree.nodes}, reverse=True)
            raise UserError("policy.first_width", first_width, f"must be one of {known}")
        if not 0 <= tradeoff < float("inf"):
            raise UserError("policy.tradeoff", tradeoff, "must be a number of at least 0")
        if len(costs) != len(tree.nodes):
            raise UserError("policy.costs", len(costs), f"there are {len(tree.nodes)} nodes")
        self.first_width, self.tradeoff, self.costs = first_width, tradeoff, list(costs)
        self.first_node = tree.index[(first_width,)]
        self.register_buffer("prices", tradeoff * torch.tensor(self.costs, dtype=torch.float64), persistent=False)
        self.register_buffer("onward", onward, persistent=False)

    def arguments(self) -> dict[str, Any]:
        """First width, lambda, the paths and their costs."""
        nodes = [list(path) for path in self.tree.nodes]
        return {"first_width": self.first_width, "tradeoff": self.tradeoff, "nodes": nodes, "costs": self.costs}

    def knobs(self, scores: Tensor) -> Tensor:
        """Minus the values of `TRADEOFFS`, from the highest price to none."""
        return -torch.tensor(TRADEOFFS, dtype=torch.float64, device=scores.device).flip(0)

    def turned(self, knob: float) -> "PredictedErrors":
        """Another price, minus the knob."""
        return PredictedErrors(self.first_width, abs(knob), self.tree.nodes, self.costs)

    def variants(self) -> list["PredictedErrors"]:
        """The policy from every first width."""
        widths = dict.fromkeys(path[0] for path in self.tree.nodes)
        return [PredictedErrors(width, self.tradeoff, self.tree.nodes, self.costs) for width in widths]

    def start(self, scores: Tensor) -> Memory:
        """The first node, `(batch,)`."""
        return scores.new_full((scores.shape[0],), self.first_node, dtype=torch.long)

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The next nodes, from the errors that are predicted for every node, `(batch, nodes)`."""
        best = (scores.double() + self.prices.to(scores.device)).argmin(1)
        after = self.onward.to(scores.device)[memory, best]
        return (after if self.tree.branches else after == memory), after

    def exits(self, predictions: Tensor, scores: Tensor) -> Tensor:
        """The node of each sample, from the errors predicted at each early node, `(batch, early nodes, nodes)`."""
        ends = (scores.double() + self.prices.to(scores.device)).argmin(2)
        moves = self.onward.to(scores.device)[torch.arange(ends.shape[1], device=ends.device), ends]
        return follow(self.tree, moves, self.first_node)


@lru_cache(maxsize=32)
def _moves(nodes: tuple[Path, ...]) -> tuple[Tree, Tensor]:
    """A tree, and from each early node the next one on the way to each other, `(early nodes, nodes)`."""
    tree = Tree(nodes)
    onward = torch.zeros(tree.num_early, len(nodes), dtype=torch.long)
    for node in range(tree.num_early):
        onward[node, tree.reachable(node)] = torch.tensor(tree.steps(node))
    return tree, onward


def follow(tree: Tree, moves: Tensor, start: int) -> Tensor:
    """Walk from the same node until every sample stays.

    Args:
        tree: The paths.
        moves: Next node at each early node, `(samples, early nodes)`.
        start: First node.

    Returns:
        Nodes, `(samples,)`.

    Example:
        >>> follow(Tree.of([(8, 8), (8, 4)]), torch.tensor([[0], [2]]), 0).tolist()
        [0, 2]
    """
    nodes = torch.full((len(moves),), start, device=moves.device)
    for _ in range(tree.segments - 1):
        early = nodes < tree.num_early
        moved = moves.gather(1, torch.where(early, nodes, 0).unsqueeze(1)).squeeze(1)
        nodes = torch.where(early, moved, nodes)
    return nodes
