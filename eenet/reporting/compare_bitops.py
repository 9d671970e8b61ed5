"""What runs are compared with on the axis of BitOPs: static networks, and QuEE's early exits by confidence."""

from collections.abc import Iterator, Sequence

from eenet.reporting.compare import Group, Point, Row, shares_of, spread
from eenet.reporting.compare_curves import Comparison

BY_CONFIDENCE = {
    "early_exit": "early exit by confidence, 32 bits",
    "quantized_early_exit": "early exit by confidence, best width",
}
"""Names of what QuEE's results have at each budget, chosen on validation samples and judged on others."""


def quantized_lines(comparison: Comparison) -> dict[str, list[Point]]:
    """Points with `accuracy` and `bitops_fraction` over seeds, by the name of their line.

    A group of QuEE has static networks at each width, and early exits by confidence at each budget that all of its
    seeds can meet; other groups have their static exits.
    """
    groups = {group.label: group for curve in comparison.curves if not curve.static for group in curve.groups}
    several = sum("static_widths" in group.results for group in groups.values()) > 1
    lines: dict[str, list[Point]] = {}
    for label, group in groups.items():
        if "static_widths" in group.results:
            found = _halves(group, comparison.reference.full_macs)
            lines |= {f"{name}, {label}" if several else name: points for name, points in found}
        else:
            lines[f"static exits, {label}"] = group.points("static_exits")
    return {name: points for name, points in lines.items() if points}


def _halves(group: Group, reference_macs: int) -> Iterator[tuple[str, list[Point]]]:
    results = [run.results for run in group.runs]
    scale = group.runs[0].full_macs / reference_macs
    for width in results[0]["static_widths"]:
        exits = zip(*(run["static_widths"][width] for run in results), strict=True)
        yield (
            f"static networks, {width} bits",
            [_point([{**row, **shares_of(row, reference_macs)} for row in rows]) for rows in exits],
        )
    for key, name in BY_CONFIDENCE.items():
        budgets = [[row[key] for row in rows] for rows in zip(*(run["at_budgets"] for run in results), strict=True)]
        yield (
            name,
            [
                _point([{**row, "bitops_fraction": scale * row["cost"]} for row in rows])
                for rows in budgets
                if all(rows)
            ],
        )


def _point(rows: Sequence[Row]) -> Point:
    figures = {key: spread([row[key] for row in rows]) for key in ("accuracy", "bitops_fraction")}
    return Point("", figures, [])
