"""Figures of a comparison; every curve has a colour and a marker, so that no line is told by its colour alone."""

import io
import itertools
from collections.abc import Iterator

from matplotlib import cm, colors, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from eenet.profile import bitops
from eenet.reporting.compare import MIXTURES, Group, Point, Spread
from eenet.reporting.compare_bitops import quantized_lines
from eenet.reporting.compare_curves import Comparison, Curve
from eenet.reporting.compare_verdict import full_network

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito, told apart with any colour vision; black is the static models'."""

MARKERS = "osD^vPX"
LABELS = {"accuracy": "accuracy (%)", "ece": "ECE, 15 equal-width bins (%)", "nll": "NLL (nats)"}
UNITS = {"accuracy": 100, "ece": 100, "nll": 1}
SHOWN_SHARE = 0.06
"""Least share of the samples that is written into its bar."""


def accuracy_cost(comparison: Comparison) -> Figure:
    """Accuracy against MACs of every curve, with its random routing and its static exits."""
    figure, (axes,) = _figure(comparison, 7.5, 1)
    _draw_lines(axes, comparison, "accuracy")
    axes.axvspan(*(100 * budget for budget in comparison.budgets), color="0.5", alpha=0.1, lw=0)
    axes.axhline(100 * full_network(comparison).mean, color="0.5", lw=1, zorder=0)
    _legend(figure, comparison)
    return figure


def calibration_cost(comparison: Comparison) -> Figure:
    """ECE and NLL against MACs; random routing is drawn for NLL alone, because its ECE is not a mixture."""
    figure, panels = _figure(comparison, 7.5, 2)
    for axes, key in zip(panels, ("ece", "nll"), strict=True):
        _draw_lines(axes, comparison, key)
        axes.set_ylim(bottom=0 if key == "ece" else None)
    _legend(figure, comparison)
    return figure


def exit_histogram(comparison: Comparison) -> Figure:
    """Share of the samples that leave at each exit, a bar for each operating point, coloured by the exit's depth."""
    rows = [(curve, *pair) for curve in comparison.curves if not curve.static for pair in curve.points(KIND)]
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(7.5, 1.4 + 0.6 * len(rows)), layout="constrained", dpi=72)
        axes = figure.subplots()
        for height, (curve, group, point) in enumerate(rows):
            axes.text(0, height - 0.32, _row_name(curve, group, point), va="bottom", fontsize=10)
            _draw_shares(axes, height, group, point)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.5, -0.8)
        axes.set_xlim(0, 100)
        axes.set_xlabel("samples leaving at each exit (%)")
        axes.set_title(comparison.title)
        scale = cm.ScalarMappable(colors.Normalize(0, 100), "cividis")
        figure.colorbar(scale, ax=axes, aspect=30, label="depth (% of the stages)")
    return figure


def accuracy_bitops(comparison: Comparison) -> Figure:
    """Accuracy against BitOPs of every curve, with static networks and QuEE's early exits by confidence."""
    figure, (axes,) = _figure(comparison, 7.5, 1)
    full = bitops(comparison.reference.full_macs)
    with rc_context({"text.parse_math": False}):
        for name, points in quantized_lines(comparison).items():
            form = ".:" if name.startswith("static") else "x--"
            _line(axes, points, "accuracy", "bitops_fraction", fmt=form, label=name, alpha=0.7, lw=1)
        for curve, colour, marker in _styles(comparison):
            points = [point for _, point in curve.points(KIND, "bitops_fraction")]
            style = {"color": colour, "ms": 9 if curve.static else 7, "lw": 1.8, "label": curve.name}
            _line(axes, points, "accuracy", "bitops_fraction", fmt=f"{marker}-", **style)
        axes.set_xscale("log")
        axes.set_xlabel(f"mean BitOPs per sample (% of {full / 1e9:,.4g} G)")
        axes.set_ylabel(LABELS["accuracy"])
        axes.set_title(comparison.title)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


FIGURES = {"accuracy_cost": accuracy_cost, "calibration_cost": calibration_cost, "exit_histogram": exit_histogram}
"""Figures of every comparison by file name."""


def draw_all(comparison: Comparison) -> dict[str, Figure]:
    """The figures by file name; accuracy against BitOPs where some run is quantized."""
    drawn = FIGURES | ({"accuracy_bitops": accuracy_bitops} if comparison.quantized else {})
    return {name: draw(comparison) for name, draw in drawn.items()}


KIND = "operating_points"


def svg(figure: Figure) -> str:
    """The figure as an SVG that is the same for the same figure: no date, no random names."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "eenet"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _figure(comparison: Comparison, width: float, panels: int) -> tuple[Figure, list[Axes]]:
    legend = 0.25 * len(comparison.curves)
    figure = Figure(figsize=(width, (5 if panels == 1 else 4) * panels + legend), layout="constrained", dpi=72)
    return figure, list(figure.subplots(panels, squeeze=False).flatten())


def _styles(comparison: Comparison) -> Iterator[tuple[Curve, str, str]]:
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    for curve in comparison.curves:
        yield (curve, "black", "*") if curve.static else (curve, *next(looks))


def _draw_lines(axes: Axes, comparison: Comparison, key: str) -> None:
    with rc_context({"text.parse_math": False}):
        drawn = set()  # runs at several policies have their static exits once
        for curve, colour, marker in _styles(comparison):
            if not curve.static:
                for group in curve.groups:
                    if group.label not in drawn:
                        _line(axes, group.points("static_exits"), key, fmt=".:", color=colour, alpha=0.6, lw=1)
                    drawn.add(group.label)
                if key in MIXTURES:
                    points = [point for _, point in curve.points("random_routing")]
                    _line(axes, points, key, fmt=f"{marker}--", color=colour, mfc="white", ms=5, lw=1)
            points = [point for _, point in curve.points(KIND)]
            _line(axes, points, key, fmt=f"{marker}-", color=colour, ms=9 if curve.static else 7, lw=1.8)
        axes.set_xlabel(f"mean MACs per sample (% of {comparison.reference.full_macs / 1e6:,.4g} M)")
        axes.set_ylabel(LABELS[key])
        axes.set_title(comparison.title)
        axes.grid(alpha=0.3)


def _line(axes: Axes, points: list[Point], key: str, cost: str = "macs_fraction", **style: object) -> None:
    costs, values = ([point.figures[name] for point in points] for name in (cost, key))
    axes.errorbar(
        [100 * cost.mean for cost in costs],
        [UNITS[key] * value.mean for value in values],
        xerr=_bars(costs, 100),
        yerr=_bars(values, UNITS[key]),
        capsize=2,
        **style,  # type: ignore[arg-type]
    )


def _bars(values: list[Spread], unit: float) -> list[float] | None:
    """Lengths of error bars; none where there is one seed."""
    lengths = [unit * (value.deviation or 0) for value in values]
    return lengths if any(lengths) else None


def _legend(figure: Figure, comparison: Comparison) -> None:
    with rc_context({"text.parse_math": False}):
        handles: list[Artist] = [
            Line2D([], [], color=colour, marker=marker, ms=7, label=curve.name)
            for curve, colour, marker in _styles(comparison)
        ]
        handles += [
            Line2D(
                [],
                [],
                color="0.35",
                ls="--",
                marker="o",
                mfc="white",
                ms=5,
                label="random routing at the same exit fractions",
            ),
            Line2D([], [], color="0.35", ls=":", marker=".", label="static exits"),
        ]
        if len(figure.axes) == 1:
            handles.append(Patch(color="0.5", alpha=0.2, label="between the budgets of the area"))
            handles.append(Line2D([], [], color="0.5", lw=1, label="full network"))
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _draw_shares(axes: Axes, height: int, group: Group, point: Point) -> None:
    stages = len(group.results["costs"]["stages"])
    depths = [*((stage + 1) / stages for stage in group.results["exit_stages"]), 1.0]
    left = 0.0
    for share, depth in zip(point.shares, depths, strict=True):
        bar: BarContainer = axes.barh(height, 100 * share, 0.55, left=left, color=cm.cividis(depth), edgecolor="white")
        if share >= SHOWN_SHARE:
            ink = "white" if depth < 0.6 else "black"
            axes.bar_label(bar, [f"{100 * share:.0f}"], label_type="center", color=ink, fontsize=8)
        left += 100 * share


def _row_name(curve: Curve, group: Group, point: Point) -> str:
    label = f", {group.label}" if len(curve.groups) > 1 else ""
    return f"{curve.name}{label}: {point.name}"
