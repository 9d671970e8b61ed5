"""Operating curves of a tree on held-out samples: QuEE's, and those of thresholds and of static networks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from eenet.errors import UnmetError, UserError
from eenet.policies import PredictedErrors, Threshold
from eenet.tree import Tree, path_name

THRESHOLDS = [*(1 - torch.logspace(0, -5, 41, dtype=torch.float64)).tolist(), float("inf")]
"""Thresholds of the maximum probability on a curve."""


class Point(NamedTuple):
    """A setting and what it gives.

    Attributes:
        width: Of the first segment.
        knob: lambda, the confidence threshold, or the number of the exit.
        accuracy: Share of the samples that are right.
        cost: Mean BitOPs as a fraction of the plain backbone's in floating point.
        path: Number of the full path that all samples go along; -1 where the policy chooses.
    """

    width: int
    knob: float
    accuracy: float
    cost: float
    path: int = -1

    @classmethod
    def of(cls, row: Sequence[float]) -> "Point":
        """A point from a row of numbers.

        Example:
            >>> Point.of([8.0, 0.5, 0.9, 0.1, -1.0])
            Point(width=8, knob=0.5, accuracy=0.9, cost=0.1, path=-1)
        """
        width, knob, accuracy, cost, path = row
        return cls(int(width), knob, accuracy, cost, int(path))


def path_curve(policy: PredictedErrors, scores: Tensor, correct: Tensor) -> list[Point]:
    """A policy of predicted errors at every first width and every price.

    Args:
        policy: Any setting.
        scores: Predicted errors, `(samples, early nodes, nodes)`.
        correct: 1 where a node is right, `(samples, nodes)`.
    """
    costs, points = torch.tensor(policy.costs, dtype=torch.float64), []
    for knob in policy.knobs(scores).flip(0).tolist():
        for variant in policy.variants():
            turned = variant.turned(knob)
            judged = judge_nodes(turned.exits(correct, scores), correct, costs)
            points.append(Point(turned.first_width, turned.tradeoff, *judged))
    return points


def threshold_curve(tree: Tree, costs: Sequence[Tensor], confidence: Tensor, correct: Tensor) -> list[Point]:
    """Early exits by confidence along every full path at each of `THRESHOLDS`; no predictor runs and none is paid for.

    Args:
        tree: The paths.
        costs: For each full path, of leaving at each of its exits, as fractions of the full network's.
        confidence: Maximum probability at each node, `(samples, nodes)`.
        correct: 1 where a node is right, `(samples, nodes)`.
    """
    points = []
    for number, (path, fractions) in enumerate(zip(tree.full, costs, strict=True)):
        own = tree.along(path)
        for threshold in THRESHOLDS:
            exits = Threshold([threshold] * (len(own) - 1)).exits(correct[:, own], confidence[:, own[:-1]])
            judged = judge_nodes(exits, correct[:, own], fractions)
            points.append(Point(path[0], threshold, *judged, number))
    return points


def static_curve(tree: Tree, costs: Sequence[Tensor], correct: Tensor) -> list[Point]:
    """All samples on one path up to one exit; the path is the first that passes there.

    Args:
        tree: The paths.
        costs: As of `threshold_curve`: heads on the way run too.
        correct: 1 where a node is right, `(samples, nodes)`.
    """
    points = []
    for node, path in enumerate(tree.nodes):
        number = next(number for number, full in enumerate(tree.full) if full[: len(path)] == path)
        accuracy, exit = correct[:, node].double().mean().item(), len(path) - 1
        points.append(Point(path[0], exit, accuracy, costs[number][exit].item(), number))
    return points


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


def curve_rows(points: Sequence[Point], tree: Tree) -> list[dict[str, Any]]:
    """Points of a curve as plain values, paths by name; a knob that is not finite becomes `None`."""
    return [
        {
            **point._asdict(),
            "knob": point.knob if abs(point.knob) < float("inf") else None,
            "path": None if point.path < 0 else path_name(tree.full[point.path]),
        }
        for point in points
    ]


def halves_at_budget(
    budget: float, tree: Tree, chosen_on: Mapping[str, Sequence[Point]], judged_on: Mapping[str, Sequence[Point]]
) -> dict[str, Any]:
    """What other ways of spending a budget reach, each at the point that is best on validation samples.

    Args:
        budget: As a fraction of the float network's BitOPs.
        tree: The paths.
        chosen_on: Curves by name, on validation samples.
        judged_on: The same points on other samples.

    Returns:
        `budget`, and by name the judged point as plain values; `None` where no point keeps the budget.
    """
    found: dict[str, Any] = {"budget": budget}
    for name, points in chosen_on.items():
        try:
            number = list(points).index(point_for_budget(points, budget))
            found[name] = curve_rows([judged_on[name][number]], tree)[0]
        except UserError:
            found[name] = None
    return found
