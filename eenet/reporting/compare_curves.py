"""Accuracy against cost: groups of runs joined into curves, and the area under each as the one-number summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eenet import __version__
from eenet.errors import UserError
from eenet.reporting.compare import STATIC_MODELS, Group, Point, Row, Run, Spread, group_runs, spread, tested_on

KINDS = ("operating_points", "random_routing", "static_exits")
"""The lines of a curve: the method's own, and the two that it has to beat."""

DEFAULT_BUDGETS = (0.35, 0.75)
"""The lower one stands above the lowest budgets in use, 0.25 and 0.3: thresholds chosen on validation data for a budget
of 0.3 cost 0.302 on test as easily as 0.298, and the area must not be undefined by a hair."""


class Budgets(NamedTuple):
    """Between which budgets the area is taken, as fractions of the reference's MACs."""

    low: float
    high: float


class Area(NamedTuple):
    """The area under a line, in units of accuracy.

    Attributes:
        value: Over seeds; `None` where it is undefined.
        note: Why it is undefined, or that no point lies between the budgets.
    """

    value: Spread | None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Groups of one method whose points form one line.

    Attributes:
        name: The method and policy; with the labels where these have several curves.
        groups: By the mean MACs of their first operating point.
        areas: Of each of `KINDS`; of static models the first alone.
    """

    name: str
    groups: list[Group]
    areas: dict[str, Area]

    @property
    def static(self) -> bool:
        """Whether these are static models."""
        return is_static(self.groups[0])

    def points(self, kind: str, cost: str = "macs") -> list[tuple[Group, Point]]:
        """The points of a kind with their groups, the cheapest first."""
        points = [(group, point) for group in self.groups for point in group.points(kind)]
        return sorted(points, key=lambda pair: pair[1].figures[cost].mean)


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: All of them.
        curves: The static models' first.
        reference: The run with the dearest plain backbone; its MACs are 100 %.
        budgets: Between which the areas are taken.
    """

    runs: list[Run]
    curves: list[Curve]
    reference: Run
    budgets: Budgets

    @property
    def title(self) -> str:
        """What the figures are of."""
        data, split, _ = tested_on(self.reference.results)
        return f"{data}, {split.removeprefix('its ')}"

    @property
    def quantized(self) -> bool:
        """Whether some run has BitOPs that are not those of its MACs at 32 bits."""
        return any("bitops" in row for run in self.runs for row in run.results["operating_points"])

    @property
    def same_rows_known(self) -> bool:
        """Whether the results say which samples they are of."""
        return "digest" in (self.reference.results.get("data_split") or {})


def compare(runs: Sequence[Run], budgets: Budgets) -> Comparison:
    """Compare runs that `load_runs` read.

    Raises:
        UserError: Runs that would be averaged differ by more than their seed.
    """
    reference = max(runs, key=lambda run: run.full_macs)
    groups = group_runs(runs, reference.full_macs)
    return Comparison(list(runs), make_curves(groups, budgets), reference, budgets)


def parse_budgets(text: str) -> Budgets:
    """The two budgets of `--budgets`.

    Raises:
        UserError: They are not two rising numbers in (0, 1].

    Example:
        >>> parse_budgets("0.25,0.75")
        Budgets(low=0.25, high=0.75)
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = float("nan")
    if not 0 < low < high <= 1:
        raise UserError("budgets", text, "must be two rising fractions of the full MACs in (0, 1], like 0.25,0.75")
    return Budgets(low, high)


def curve_area(costs: Sequence[float], accuracies: Sequence[float], budgets: Budgets) -> float | None:
    """Mean accuracy that a set of operating points offers over the budgets between two.

    The curve is piecewise linear through the points in the order of their costs, after each point's accuracy was raised
    to that of the best point that costs no more (the non-decreasing envelope), and flat beyond the dearest point. The
    area is divided by the width, so that its unit is accuracy.

    Args:
        costs: Of the points, in the unit of the budgets.
        accuracies: Of the points.
        budgets: Between which the area is taken.

    Returns:
        The area, or `None` where the cheapest point costs more than the lower budget: there the curve is undefined.

    Example:
        >>> curve_area([0.2, 0.6], [0.8, 0.9], Budgets(0.2, 1.0))
        0.875
        >>> curve_area([0.3, 0.6], [0.8, 0.9], Budgets(0.2, 1.0)) is None
        True
    """
    rising, best = raised(costs, accuracies)
    if rising[0] > budgets.low:
        return None
    inside = rising[(rising > budgets.low) & (rising < budgets.high)]
    at = np.array([budgets.low, *inside, budgets.high])
    heights = np.interp(at, rising, best)
    return float(np.diff(at) @ (heights[1:] + heights[:-1]) / 2 / (budgets.high - budgets.low))


def raised(costs: Sequence[float], accuracies: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Rising costs, and the accuracy of the best point that costs no more."""
    points = np.array([costs, accuracies])
    points = points[:, np.lexsort((-points[1], points[0]))]
    rising, first = np.unique(points[0], return_index=True)  # of points of one cost, the best
    return rising, np.maximum.accumulate(points[1, first])


def envelope(rows: Sequence[Row], budget: float) -> float | None:
    """Accuracy of the line of `curve_area` at a budget, `None` where its cheapest point costs more."""
    rising, best = raised([row["macs_fraction"] for row in rows], [row["accuracy"] for row in rows])
    return None if rising[0] > budget else float(np.interp(budget, rising, best))


def line_area(groups: Sequence[Group], kind: str, budgets: Budgets) -> Area:
    """The area under the points of a kind: of each seed that all groups have, then over the seeds."""
    shared = [seed for seed in groups[0].seeds if all(seed in group.seeds for group in groups)]
    if not shared:
        return Area(None, "undefined: no seed has all of its points")
    low = f"{100 * budgets.low:g} %"
    areas, dearest = [], 0.0
    for seed in shared:
        rows = [row for group in groups for row in group.rows[group.seeds.index(seed)][kind]]
        costs = [row["macs_fraction"] for row in rows]
        area = curve_area(costs, [row["accuracy"] for row in rows], budgets)
        if area is None:
            cheapest = f"the cheapest point costs {100 * min(costs):.1f} % (seed {seed})"
            return Area(None, f"undefined: {cheapest}, more than the lower budget of {low}")
        areas.append(area)
        dearest = max(dearest, *costs)
    flat = f"no point costs more than {100 * dearest:.1f} %, so that all of it is beyond the dearest one"
    return Area(spread(areas), flat if dearest <= budgets.low else "")


def make_curves(groups: Sequence[Group], budgets: Budgets) -> list[Curve]:
    """Join groups into curves.

    Static models of one family form one curve. So do the groups of one method and policy that have a single operating
    point each and differ by lambda or a budget alone. A group of several points is a curve of its own.
    """
    joined: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        results = group.results
        if is_static(group):
            key = (STATIC_MODELS, str(results["backbone"].get("family")))
        else:
            alone = (group.label,) if len(group.rows[0]["operating_points"]) > 1 else ()
            key = (group.method, group.runs[0].curve_key, *alone)
        joined.setdefault(key, []).append(group)
    methods = [method for method, *_ in joined]
    curves = []
    for (method, *_), members in joined.items():
        members.sort(key=lambda group: group.points("operating_points")[0].figures["macs"].mean)
        name = "static models" if method == STATIC_MODELS else method
        if methods.count(method) > 1:
            more = f" + {len(members) - 1}" if len(members) > 1 else ""
            name += f" ({members[0].label}{more})"
        kinds = KINDS[:1] if method == STATIC_MODELS else KINDS
        curves.append(Curve(name, members, {kind: line_area(members, kind, budgets) for kind in kinds}))
    return sorted(curves, key=lambda curve: not curve.static)


def is_static(group: Group) -> bool:
    """Whether the group's runs are static models."""
    return group.results["method"] == STATIC_MODELS


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values; a spread is `mean` and `deviation`, the latter `null` with one seed."""

    def describe(point: Point) -> dict[str, Any]:
        figures = {key: value._asdict() for key, value in point.figures.items()}
        return {"name": point.name, "exit_fractions": point.shares, **figures}

    def describe_area(area: Area) -> dict[str, Any]:
        return {**(area.value._asdict() if area.value else {}), **({"note": area.note} if area.note else {})}

    results = comparison.reference.results
    return {
        "eenet": __version__,
        "data": results["data"],
        "split": results["split"],
        "data_split": results.get("data_split"),
        "reference_macs": comparison.reference.full_macs,
        "reference_backbone": results["backbone"],
        "budgets": list(comparison.budgets),
        "curves": [
            {
                "name": curve.name,
                "areas": {kind: describe_area(area) for kind, area in curve.areas.items()},
                "groups": [
                    {
                        "label": group.label,
                        "method": group.results["method"],
                        "policy": group.policy,
                        "backbone": group.results["backbone"],
                        "exit_stages": group.results["exit_stages"],
                        "identity": group.results["identity"],
                        "seeds": group.seeds,
                        "folders": [str(run.folder) for run in group.runs],
                        **{kind: [describe(point) for point in group.points(kind)] for kind in curve.areas},
                    }
                    for group in curve.groups
                ],
            }
            for curve in comparison.curves
        ],
    }
