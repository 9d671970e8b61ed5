"""QuEE's gate: how likely each node that can still be reached is wrong (Regol et al., arXiv 2406.14404)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from eenet.gates.base import Gate, GateInput, Known, Memory
from eenet.tree import Tree


class ErrorPredictor(nn.Module):
    """A perceptron on the exit's four uncertainty statistics and a linear projection of the features.

    It is frozen except while `fit_predictor` trains it.

    Args:
        dim: Width of the features.
        options: Paths whose errors are predicted at once.
        projection: Width of the projection, the first principal components.
        hidden: Width of the hidden layer.

    Example:
        >>> ErrorPredictor(64, 5)(Known(torch.zeros(2, 4), torch.zeros(2, 64))).shape
        torch.Size([2, 5])
    """

    center: Tensor
    spread: Tensor

    def __init__(self, dim: int, options: int, projection: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.project = nn.Linear(dim, min(projection, dim)).requires_grad_(False)
        inputs = 4 + self.project.out_features
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, options))
        self.layers.requires_grad_(False)
        self.register_buffer("center", torch.zeros(4))
        self.register_buffer("spread", torch.ones(4))

    def describe(self, known: Known) -> Tensor:
        """The compact description of samples that is clustered and read, `(samples, 4 + projection)`."""
        statistics = (known.statistics - self.center) / self.spread
        return torch.cat([statistics, self.project(known.features)], dim=1)

    def forward(self, known: Known) -> Tensor:
        """Logits of the probability that each path is wrong, `(samples, options)`."""
        return self.layers(self.describe(known))

    @torch.no_grad()
    def fit_description(self, known: Known) -> None:
        """Standardise the statistics and take the principal components, both halves with the same total variance."""
        self.center.copy_(known.statistics.mean(0))
        self.spread.copy_(known.statistics.std(0, correction=0).clamp_min(1e-6))
        from sklearn.decomposition import PCA  # takes a second to import

        features = known.features.double().cpu().numpy()
        components = min(self.project.out_features, *features.shape)
        pca = PCA(components, svd_solver="full").fit(features)
        weight = torch.zeros(self.project.weight.shape, dtype=torch.float64)
        weight[:components] = torch.from_numpy(pca.components_)
        weight /= math.sqrt(max(pca.explained_variance_.sum(), 1e-12) / 4)
        self.project.weight.copy_(weight)
        self.project.bias.copy_(-weight @ torch.from_numpy(pca.mean_))


class ErrorGate(Gate):
    """An `ErrorPredictor` at each early node of a tree.

    The form of the predictors and what they read are ours [inferred].

    Args:
        tree: The tree.
        dims: Width of the features at each early exit.
    """

    reads: ClassVar[GateInput] = "known"
    lookup: Tensor

    def __init__(self, tree: Tree, dims: Sequence[int]) -> None:
        super().__init__(tree.num_early)
        self.tree = tree
        reachable = [tree.reachable(node) for node in range(tree.num_early)]
        self.predictors = nn.ModuleList(
            ErrorPredictor(dims[tree.exit(node)], len(options)) for node, options in enumerate(reachable)
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
            found[rows] = self.errors(node, Known(*(values[rows] for values in logits)))
        return found, memory
