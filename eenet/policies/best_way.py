"""Go the way that is worth most, or leave: optimal stopping where the paths of a network branch by width."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.gates.base import Memory
from eenet.policies.base import Policy
from eenet.policies.predicted_errors import follow
from eenet.tree import Path, Tree

SETTINGS = 41
"""Thresholds that are compared."""


class BestWay(Policy):
    """Leave where no way on is better than leaving by more than minus a threshold; else go the best way.

    It reads an `eenet.gates.TreeStoppingGate`, whose scores say how much dearer each way is than leaving.

    Args:
        first_width: Of the first segment, before which nothing is known of a sample.
        threshold: Least score of the best way at which a sample leaves; as text where it is infinite.
        nodes: Paths of the tree, as `Tree.nodes`.

    Raises:
        UserError: No segment begins at the first width, or the threshold is no number.

    Example:
        >>> policy = BestWay(8, 0.0, [(8,), (8, 8), (8, 4)])
        >>> policy.exits(torch.zeros(3, 3), torch.tensor([[[0.1, 0.2]], [[-0.1, 0.2]], [[-0.1, -0.2]]])).tolist()
        [0, 1, 2]
    """

    tree: Tree
    ways: Tensor

    def __init__(self, first_width: int, threshold: float | str, nodes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.tree, ways = _ways(tuple(map(tuple, nodes)))
        if (first_width,) not in self.tree.index:
            known = sorted({path[0] for path in self.tree.nodes}, reverse=True)
            raise UserError("policy.first_width", first_width, f"must be one of {known}")
        self.first_width, self.threshold = first_width, float(threshold)
        if self.threshold != self.threshold:
            raise UserError("policy.threshold", threshold, "must be a number")
        self.first_node = self.tree.index[(first_width,)]
        self.register_buffer("ways", ways, persistent=False)

    def arguments(self) -> dict[str, Any]:
        """First width, threshold and paths."""
        threshold = self.threshold if abs(self.threshold) < float("inf") else str(self.threshold)
        nodes = [list(path) for path in self.tree.nodes]
        return {"first_width": self.first_width, "threshold": threshold, "nodes": nodes}

    def knobs(self, scores: Tensor) -> Tensor:
        """Thresholds spread evenly over the scores of the best ways, with which everybody leaves, and nobody."""
        best = scores.double().amin(2).flatten()
        best = best[best.isfinite()].sort().values
        places = torch.linspace(0, len(best) - 1, min(SETTINGS - 2, len(best))).round().long()
        ends = best.new_tensor([float("inf")])
        return torch.cat([-ends, best[places].unique(), ends])

    def turned(self, knob: float) -> "BestWay":
        """Another threshold."""
        return BestWay(self.first_width, knob, self.tree.nodes)

    def start(self, scores: Tensor) -> Memory:
        """The first node, `(batch,)`."""
        return scores.new_full((scores.shape[0],), self.first_node, dtype=torch.long)

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The next nodes, from the scores of the ways on, `(batch, ways)`."""
        best, way = scores.min(1)
        on = self.ways.to(scores.device)[memory].gather(1, way.unsqueeze(1)).squeeze(1)
        after = torch.where(best < self.threshold, on, memory)
        return after, after

    def exits(self, predictions: Tensor, scores: Tensor) -> Tensor:
        """The node of each sample, from the scores at each early node, `(batch, early nodes, ways)`."""
        best, way = scores.min(2)
        ways = self.ways.to(scores.device)
        on = ways.expand(len(scores), -1, -1).gather(2, way.unsqueeze(2)).squeeze(2)
        own = torch.arange(ways.shape[0], device=scores.device)
        return follow(self.tree, torch.where(best < self.threshold, on, own), self.first_node)


@lru_cache(maxsize=32)
def _ways(nodes: tuple[Path, ...]) -> tuple[Tree, Tensor]:
    """A tree, and the children of each early node, `(early nodes, ways)`; the node itself where there are fewer."""
    tree = Tree(nodes)
    children = [tree.children(node) for node in range(tree.num_early)]
    most = max(map(len, children))
    return tree, torch.tensor([found + [node] * (most - len(found)) for node, found in enumerate(children)])
