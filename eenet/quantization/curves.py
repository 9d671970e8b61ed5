"""Operating curves on held-out samples, from one trained network: QuEE's and those of its two halves."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from eenet.errors import UnmetError, UserError
from eenet.quantization.network import QuantizedNetwork
from eenet.quantization.policy import PathPolicy, first_node, follow, next_moves

TRADEOFFS = [0.0, *torch.logspace(-3, 2, 41, dtype=torch.float64).tolist()]
"""Values of lambda on a curve."""

THRESHOLDS = [*(1 - torch.logspace(0, -5, 41, dtype=torch.float64)).tolist(), float("inf")]
"""Thresholds of the maximum probability on a curve."""


class Point(NamedTuple):
    """A setting and what it gives.

    Attributes:
        width: Of the first segment.
        knob: lambda, the confidence threshold, or the number of the exit.
        accuracy: Share of the samples that are right.
        cost: Mean BitOPs as a fraction of the plain backbone's in floating point.
    """

    width: int
    knob: float
    accuracy: float
    cost: float


def path_curve(network: QuantizedNetwork, errors: Sequence[Tensor], correct: Tensor) -> list[Point]:
    """QuEE at every first width and every lambda of `TRADEOFFS`.

    Args:
        network: The network.
        errors: From `predicted_errors`.
        correct: 1 where a node is right, `(samples, nodes)`.
    """
    points = []
    for tradeoff in TRADEOFFS:
        moves = next_moves(network, errors, tradeoff)
        for width in network.widths:
            nodes = follow(network.tree, moves, first_node(network, PathPolicy(width, tradeoff)))
            points.append(Point(width, tradeoff, *judge_nodes(nodes, correct, network.node_costs)))
    return points


def threshold_nodes(path: Sequence[int], confidence: Tensor, threshold: float) -> Tensor:
    """Where samples leave that all take one path and leave at the first exit with enough confidence.

    Args:
        path: Its nodes, one per exit.
        confidence: Maximum probability at each node, `(samples, nodes)`.
        threshold: Of the maximum probability.

    Returns:
        Nodes, `(samples,)`.

    Example:
        >>> threshold_nodes([0, 3], torch.tensor([[0.9, 0, 0, 0.6], [0.4, 0, 0, 0.5]]), 0.8).tolist()
        [0, 3]
    """
    nodes = torch.tensor(path, device=confidence.device)
    sure = confidence[:, nodes] >= threshold
    sure[:, -1] = True
    return nodes[sure.int().argmax(1)]


def threshold_curve(network: QuantizedNetwork, confidence: Tensor, correct: Tensor) -> list[Point]:
    """Early exits by confidence at every width and each of `THRESHOLDS`; no predictor runs and none is paid for."""
    costs = threshold_costs(network)
    points = []
    for width in network.widths:
        path = uniform_nodes(network, width)
        for threshold in THRESHOLDS:
            nodes = threshold_nodes(path, confidence, threshold)
            points.append(Point(width, threshold, *judge_nodes(nodes, correct, costs)))
    return points


def threshold_costs(network: QuantizedNetwork) -> Tensor:
    """BitOPs of leaving at each node when no predictor runs, as fractions of the float network's, `(nodes,)`."""
    costs = [network.path_costs.routed(path, 0) for path in network.tree.nodes]
    return torch.tensor(costs, dtype=torch.float64) / network.path_costs.full


def static_curve(network: QuantizedNetwork, correct: Tensor) -> list[Point]:
    """Networks cut at an exit and quantized at one width, for every width and exit."""
    points = []
    for width in network.widths:
        for exit, node in enumerate(uniform_nodes(network, width)):
            cost = network.path_costs.static(network.tree.nodes[node]) / network.path_costs.full
            points.append(Point(width, exit, correct[:, node].double().mean().item(), cost))
    return points


def uniform_nodes(network: QuantizedNetwork, width: int) -> list[int]:
    """The nodes of the path that keeps one width."""
    tree = network.tree
    return [tree.index[(width,) * length] for length in range(1, tree.segments + 1)]


class Judged(Protocol):
    """What has an accuracy, and a mean cost as a fraction of the full network's."""

    @property
    def accuracy(self) -> float:
        """Share of the samples that are right."""

    @property
    def cost(self) -> float:
        """The cost."""


AnyPoint = TypeVar("AnyPoint", bound=Judged)


def point_for_budget(points: Sequence[AnyPoint], budget: float, field: str = "budgets") -> AnyPoint:
    """The most accurate point whose cost keeps a budget, the cheapest of equals.

    Raises:
        UserError: The budget is not positive.
        UnmetError: No point keeps it.

    Example:
        >>> point_for_budget([Point(8, 1.0, 0.7, 0.1), Point(8, 0.1, 0.9, 0.3)], 0.2).knob
        1.0
    """
    if not budget > 0:
        raise UserError(field, budget, "a budget is a fraction of the full network's BitOPs and must be above 0")
    kept = [point for point in points if point.cost <= budget]
    if not kept:
        least = min(point.cost for point in points)
        raise UnmetError(field, budget, f"the cheapest operating point costs {least:.4f} of the full network's BitOPs")
    return max(kept, key=lambda point: (point.accuracy, -point.cost))


def judge_nodes(nodes: Tensor, correct: Tensor, costs: Tensor) -> tuple[float, float]:
    """Accuracy and mean cost of samples that leave at some nodes.

    Args:
        nodes: `(samples,)`.
        correct: 1 where a node is right, `(samples, nodes)`.
        costs: Of each node, `(nodes,)`.
    """
    right = correct.gather(1, nodes.unsqueeze(1)).double().mean().item()
    return right, costs.to(nodes.device)[nodes].mean().item()
