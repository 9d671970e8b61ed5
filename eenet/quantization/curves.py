"""Operating curves on held-out samples, from one trained network: QuEE's and those of its two halves."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eenet.errors import UserError
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
            points.append(Point(width, tradeoff, *_judge(nodes, correct, network.node_costs)))
    return points


def threshold_nodes(network: QuantizedNetwork, confidence: Tensor, width: int, threshold: float) -> Tensor:
    """Where samples leave that run at one width and leave at the first exit with enough confidence.

    Args:
        network: The network.
        confidence: Maximum probability at each node, `(samples, nodes)`.
        width: Throughout.
        threshold: Of the maximum probability.

    Returns:
        Nodes, `(samples,)`.
    """
    nodes = torch.tensor(uniform_nodes(network, width), device=confidence.device)
    sure = confidence[:, nodes] >= threshold
    sure[:, -1] = True
    return nodes[sure.int().argmax(1)]


def threshold_curve(network: QuantizedNetwork, confidence: Tensor, correct: Tensor) -> list[Point]:
    """Early exits by confidence at every width and each of `THRESHOLDS`; no predictor runs and none is paid for."""
    costs = torch.tensor([network.path_costs.routed(path, 0) for path in network.tree.nodes]).double()
    points = []
    for width in network.widths:
        for threshold in THRESHOLDS:
            nodes = threshold_nodes(network, confidence, width, threshold)
            points.append(Point(width, threshold, *_judge(nodes, correct, costs / network.path_costs.full)))
    return points


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


def point_for_budget(points: Sequence[Point], budget: float, field: str = "budgets") -> Point:
    """The most accurate point whose cost keeps a budget, the cheapest of equals.

    Raises:
        UserError: The budget is not positive, or no point keeps it.

    Example:
        >>> point_for_budget([Point(8, 1.0, 0.7, 0.1), Point(8, 0.1, 0.9, 0.3)], 0.2).knob
        1.0
    """
    if not budget > 0:
        raise UserError(field, budget, "a budget is a fraction of the full network's BitOPs and must be above 0")
    kept = [point for point in points if point.cost <= budget]
    if not kept:
        least = min(point.cost for point in points)
        raise UserError(field, budget, f"the cheapest operating point costs {least:.4f} of the full network's BitOPs")
    return max(kept, key=lambda point: (point.accuracy, -point.cost))


def _judge(nodes: Tensor, correct: Tensor, costs: Tensor) -> tuple[float, float]:
    right = correct.gather(1, nodes.unsqueeze(1)).double().mean().item()
    return right, costs.to(nodes.device)[nodes].mean().item()
