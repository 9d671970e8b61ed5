"""Figures of a run's results, for TensorBoard and for files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eenet.files import whole
from eenet.metrics import NUM_BINS
from eenet.reporting.names import spoken
from eenet.reporting.results import Results, chosen_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = ("accuracy on validation (%)", "NLL on validation (nats)")
"""Axes of the figure of exits over a training."""


def accuracy_cost_figure(results: Results) -> "Figure":
    """Accuracy against MACs: the static exits' curve and every routed operating point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained", dpi=72)
    axes = figure.subplots()
    exits, points = results["exits"], distinct(chosen_rows(results))
    axes.plot(_percent(exits, "macs_fraction"), _percent(exits, "accuracy"), "o-", color="0.5", label="static exits")
    for number, row in enumerate(exits):
        at = (100 * row["macs_fraction"], 100 * row["accuracy"])
        axes.annotate(str(number), at, (3, -10), textcoords="offset points")
    for row in points:
        axes.plot(100 * row["macs_fraction"], 100 * row["accuracy"], "*", markersize=13, label=f"routed, {row['name']}")
    axes.set_xlabel("mean MACs per sample (% of the full network)")
    axes.set_ylabel(f"accuracy on {results['split']} (%)")
    axes.set_title(f"{spoken(results['method'])} on {results['data']}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def exit_histogram_figure(results: Results) -> "Figure":
    """Share of the samples that leave at each exit, for every operating point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained", dpi=72)
    axes = figure.subplots()
    points = distinct(chosen_rows(results))
    width = 0.8 / max(len(points), 1)
    for number, row in enumerate(points):
        positions = np.arange(len(row["exit_fractions"])) + (number - (len(points) - 1) / 2) * width
        axes.bar(positions, [100 * share for share in row["exit_fractions"]], width, label=row["name"])
    axes.set_xlabel("exit")
    axes.set_ylabel(f"samples of {results['split']} leaving there (%)")
    axes.set_xticks(range(len(results["exits"])))
    if points:
        axes.legend()
    return figure


def exits_over_training_figure(history: Sequence[tuple[int, list[dict[str, Any]]]]) -> "Figure":
    """Accuracy and NLL of each exit over the training; an exit has one colour in both, the darker the earlier it is.

    Args:
        history: Optimizer steps and the rows of the exits of each validation so far, at least of one.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained", dpi=72)
    steps, names = [step for step, _ in history], [row["name"] for row in history[-1][1]]
    for axes, key, unit, label in zip(figure.subplots(1, 2), ("accuracy", "nll"), (100, 1), LABELS, strict=True):
        for number, name in enumerate(names):
            colour = colormaps["viridis"](0.9 * number / max(len(names) - 1, 1))
            axes.plot(steps, [unit * rows[number][key] for _, rows in history], ".-", color=colour, label=name)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    columns = min(len(names), 8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)
    return figure


def reliability_figure(results: Results) -> "Figure":
    """A reliability diagram for every static exit and every operating point.

    Bars are the accuracy of the samples in each bin of confidence, dots their mean confidence and accuracy, joined
    where bins are neighbours; below, how the samples spread over the bins. The dotted diagonal is perfect calibration.
    """
    from matplotlib.figure import Figure

    rows = results["exits"] + distinct(chosen_rows(results))
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * lines + 0.6), layout="constrained", dpi=72)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
    edges = np.linspace(0, 1, NUM_BINS + 1)
    for axes, row in zip(grid, rows, strict=False):
        bins = row["bins"]
        dots, shares = np.full((2, NUM_BINS), np.nan), np.zeros(NUM_BINS)
        dots[:, bins["index"]] = bins["confidence"], bins["accuracy"]
        shares[bins["index"]] = np.array(bins["count"]) / sum(bins["count"])
        axes.plot([0, 1], [0, 1], ":", color="0.5", label="calibrated")
        axes.stairs(dots[1], edges, fill=True, color="C0", alpha=0.5, label="accuracy")
        axes.plot(*dots, ".-", color="C1", label="mean confidence and accuracy")
        axes.stairs(-0.3 * shares, edges, fill=True, color="0.6", label="samples, downwards (a full bar: all)")
        axes.axhline(0, color="0.3", lw=0.8)
        axes.set_title(f"{row['name']}\nECE {100 * row['ece']:.1f} %, n = {sum(bins['count']):,}", fontsize=10)
        axes.set_ylim(-0.3, 1.05)
        axes.set_yticks([0, 0.5, 1])
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    figure.supxlabel("confidence")
    figure.supylabel("accuracy")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def distinct(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Operating points; those that send the samples alike are one, which has all their names, one below the other.

    Example:
        >>> points = [{"name": name, "accuracy": 0.9, "exit_fractions": [0.5, 0.5]} for name in ("a", "b")]
        >>> [row["name"] for row in distinct([*points, {"name": "c", "accuracy": 0.9, "exit_fractions": [0, 1]}])]
        ['a\\nb', 'c']
    """
    alike: dict[Any, list[dict[str, Any]]] = {}
    for row in points:
        alike.setdefault((row["accuracy"], *row["exit_fractions"]), []).append(row)
    return [{**rows[0], "name": "\n".join(row["name"] for row in rows)} for rows in alike.values()]


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure beside the path and rename it, so that the file is whole or not there."""
    with whole(path) as beside:
        figure.savefig(beside, dpi=150, format=path.suffix.removeprefix("."))


def _percent(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [100 * row[key] for row in rows]
