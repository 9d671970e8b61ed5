"""The gate of optimal stopping where the paths of a network branch by width."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.gates.base import Gate, Memory
from eenet.gates.stopping import FIGURES, describe
from eenet.tree import Tree


class TreeStoppingGate(Gate):
    """Scores each way on from a node by its predicted value less that of leaving, linear in what its softmax says.

    Nothing is remembered but the node. The weights come from `eenet.calibration.fit_stopping`.

    Args:
        nodes: Paths of the tree, as `Tree.nodes`.
        num_classes: Classes of the logits.

    Example:
        >>> gate = TreeStoppingGate([(8,), (8, 8), (8, 4)], 10)
        >>> gate(torch.zeros(2, 1, 10)).shape
        torch.Size([2, 1, 2])
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, nodes: Sequence[Sequence[int]], num_classes: int) -> None:
        tree = Tree(tuple(map(tuple, nodes)))
        super().__init__(tree.num_early)
        self.tree, self.num_classes = tree, num_classes
        ways = max(len(self.tree.children(node)) for node in range(self.num_gates))
        self.register_buffer("weight", torch.zeros(self.num_gates, ways, self.num_inputs))
        self.register_buffer("bias", torch.zeros(self.num_gates, ways))

    @property
    def num_inputs(self) -> int:
        """Figures that are known at a node."""
        return FIGURES + self.num_classes

    def arguments(self) -> dict[str, Any]:
        """The paths and the classes."""
        return {"nodes": [list(path) for path in self.tree.nodes], "num_classes": self.num_classes}

    def forward(self, logits: Tensor) -> Tensor:
        """Scores of the ways on, in the order of `Tree.children`, 1e9 where there is none, `(batch, gates, ways)`."""
        return torch.stack([self.way_scores(node, logits[:, node]) for node in range(self.num_gates)], dim=1)

    def way_scores(self, node: int, logits: Tensor) -> Tensor:
        """Those of one node, `(batch, ways)`, from its logits, `(batch, classes)`."""
        return F.linear(describe(logits), self.weight[node], self.bias[node])

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Scores at a place, `(batch, ways)`.

        Args:
            exit: Number of the place.
            logits: Logits there, `(batch, classes)`.
            memory: Node of each sample, `(batch,)`, where the place has several.
        """
        nodes = self.tree.nodes_at(exit)
        if len(nodes) == 1:
            return self.way_scores(nodes[0], logits), memory
        scores = (self.weight[memory] * describe(logits).unsqueeze(1)).sum(-1)
        return scores + self.bias[memory], memory
