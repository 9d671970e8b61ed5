"""QuEE's gate: how likely each node that can still be reached is wrong (Regol et al., arXiv 2406.14404)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from eenet.gates.base import Gate, GateInput, Known, Memory
from eenet.tree import Tree

BEST = 5
"""Of the log-probabilities so many highest are read in their order."""

OUTLYING = 6.0
"""Standard deviations at which what is read is cut off."""


class ErrorPredictor(nn.Module):
    """A perceptron on what every exit passed says: statistics, all log-probabilities and the highest, pooled features,
    and whether each exit predicts the class that the one before does.

    It is frozen except while `fit_predictor` trains it.

    Args:
        dims: Width of the features at each exit passed, from the first to the own.
        classes: Number of classes.
        options: Paths whose errors are predicted at once.
        hidden: Width of the hidden layer.

    Example:
        >>> known = Known(torch.zeros(2, 4), torch.zeros(2, 64), torch.zeros(2, 10))
        >>> ErrorPredictor([64], 10, 5)(known).shape
        torch.Size([2, 5])
    """

    center: Tensor
    spread: Tensor

    def __init__(self, dims: Sequence[int], classes: int, options: int, hidden: int = 32) -> None:
        super().__init__()
        self.classes, self.best = classes, min(BEST, classes)
        inputs = sum(4 + self.best + classes + dim for dim in dims) + len(dims) - 1
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, options))
        self.layers.requires_grad_(False)
        self.register_buffer("center", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))

    def read(self, known: Known) -> Tensor:
        """What is known of samples in one row each, `(samples, inputs)`."""
        rows = [*known.passed, known.row]
        log_p = [row[:, 4 : 4 + self.classes] for row in rows]
        best = [found.topk(self.best, dim=1).values for found in log_p]
        said = [found.argmax(1, keepdim=True) for found in log_p]
        agree = [(one == other).to(rows[0]) for one, other in pairwise(said)]
        return torch.cat([*rows, *best, *agree], dim=1)

    def describe(self, known: Known) -> Tensor:
        """What is read, standardised, `(samples, inputs)`."""
        return ((self.read(known) - self.center) / self.spread).clamp(-OUTLYING, OUTLYING)

    def forward(self, known: Known) -> Tensor:
        """Logits of the probability that each path is wrong, `(samples, options)`."""
        return self.layers(self.describe(known))

    @torch.no_grad()
    def fit_description(self, known: Known) -> None:
        """Standardise what is read by these samples; what never differs counts nothing."""
        read = self.read(known)
        self.center.copy_(read.mean(0))
        spread = read.std(0, correction=0)
        self.spread.copy_(torch.where(spread > 1e-6, spread, torch.inf))


class ErrorGate(Gate):
    """An `ErrorPredictor` at each early node of a tree.

    The form of the predictors and what they read are ours [inferred].

    Args:
        tree: The tree.
        dims: Width of the features at each early exit.
        classes: Number of classes.
    """

    reads: ClassVar[GateInput] = "known"
    lookup: Tensor

    def __init__(self, tree: Tree, dims: Sequence[int], classes: int) -> None:
        super().__init__(tree.num_early)
        self.tree = tree
        reachable = [tree.reachable(node) for node in range(tree.num_early)]
        self.predictors = nn.ModuleList(
            ErrorPredictor(dims[: tree.exit(node) + 1], classes, len(options)) for node, options in enumerate(reachable)
        )
        lookup = [
            [options.index(other) if other in options else len(options) for other in range(len(tree.nodes))]
            for options in reachable
        ]
        self.register_buffer("lookup", torch.tensor(lookup), persistent=False)

    def errors(self, node: int, known: Known) -> Tensor:
        """Predicted at an early node for every node, infinite where it cannot be reached, `(batch, nodes)`."""
        found = self.predictors[node](known).sigmoid()
        return torch.cat([found, torch.full_like(found[:, :1], math.inf)], dim=1).index_select(1, self.lookup[node])

    def forward(self, known: Sequence[Known]) -> Tensor:  # type: ignore[override]
        """Predicted at all early nodes, `(batch, early nodes, nodes)`, from what is known at each."""
        return torch.stack([self.errors(node, rows) for node, rows in enumerate(known)], dim=1)

    def at(self, exit: int, logits: Known, memory: Memory = ()) -> tuple[Tensor, Memory]:  # type: ignore[override]
        """Predicted for every node, `(batch, nodes)`, from what is known at a place.

        Args:
            exit: Number of the place.
            logits: What is known there.
            memory: Node of each sample, `(batch,)`, where the place has several.
        """
        nodes = self.tree.nodes_at(exit)
        if len(nodes) == 1:
            return self.errors(nodes[0], logits), memory
        if torch.compiler.is_exporting():  # a graph cannot ask who is there
            every = torch.stack([self.errors(node, logits) for node in nodes], dim=1)
            own = (memory.unsqueeze(1) == torch.tensor(nodes, device=memory.device)).to(torch.long).argmax(1)
            return every.gather(1, own[:, None, None].expand(-1, 1, every.shape[2])).squeeze(1), memory
        found = logits.features.new_empty(len(memory), len(self.tree.nodes))
        for node in memory.unique().tolist():
            rows = (memory == node).nonzero().squeeze(1)
            found[rows] = self.errors(node, logits.take(rows)).to(found.dtype)  # which autocast changes
        return found, memory
