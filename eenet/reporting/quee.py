"""QuEE's figures: accuracy against BitOPs with both halves, the paths taken, the predictors' calibration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from eenet.metrics import NUM_BINS
from eenet.reporting import Results, chosen_rows
from eenet.reporting.names import spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_bitops_figure(results: Results) -> "Figure":
    """Accuracy against mean BitOPs: QuEE's whole curve, early exits at each width, static networks at each width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=72)
    axes = figure.subplots()
    for number, (width, rows) in enumerate(results["static_widths"].items()):
        color = f"C{number}"
        axes.plot(*_points(rows, "bitops_fraction"), "o", color=color, label=f"static, {width} bits")
        points = [row for row in results["curves"]["quantized_early_exit"] if row["width"] == int(width)]
        axes.plot(
            *_points(points, "cost"), "-", color=color, alpha=0.6, label=f"early exit by confidence, {width} bits"
        )
    axes.plot(*_frontier(_points(results["curves"]["quee"], "cost")), "k-", label="QuEE, all lambda")
    axes.plot(*_points(chosen_rows(results), "bitops_fraction"), "k*", markersize=12, label="QuEE, routed")
    axes.set_xscale("log")
    axes.set_xlabel("mean BitOPs per sample (% of the float network)")
    axes.set_ylabel(f"accuracy on {results['split']} (%)")
    axes.set_title(f"{spoken(results['method'])} on {results['data']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def path_histogram_figure(results: Results) -> "Figure":
    """For every operating point and segment the share of the samples that ran it at each width, or had left."""
    from matplotlib.figure import Figure

    points, widths = chosen_rows(results), results["quantization"]["widths"]
    segments = len(results["exits"])
    figure = Figure(figsize=(2.6 * len(points) + 1.2, 3.2), layout="constrained", dpi=72)
    for axes, row in zip(figure.subplots(1, len(points), squeeze=False, sharey=True)[0], points, strict=True):
        bottom = [0.0] * segments
        for number, width in enumerate(widths):
            shares = [100 * _share(row["paths"], segment, width) for segment in range(segments)]
            axes.bar(range(segments), shares, bottom=bottom, color=f"C{number}", label=f"{width} bits")
            bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
        axes.set_ylim(0, 100)
        axes.set_xticks(range(segments))
        axes.set_title(row["name"], fontsize=9)
    axes.legend(fontsize=7)
    figure.supxlabel("segment")
    figure.supylabel(f"samples of {results['split']} (%)")
    return figure


def predictor_figure(results: Results) -> "Figure":
    """How often paths are wrong, by predicted error, over all decision points and reachable paths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3.6), layout="constrained", dpi=72)
    axes = figure.subplots()
    bins = results["predictors"]["calibration"]
    axes.plot([0, 1], [0, 1], ":", color="0.5")
    axes.bar([(index + 0.5) / NUM_BINS for index in bins["index"]], bins["accuracy"], 1 / NUM_BINS, alpha=0.5)
    axes.plot(bins["confidence"], bins["accuracy"], ".-", color="C1")
    axes.set_xlabel("predicted probability of an error")
    axes.set_ylabel(f"share of errors on {results['split']}")
    return figure


def _points(rows: list[dict], cost: str) -> tuple[list[float], list[float]]:
    ordered = sorted(rows, key=lambda row: row[cost])
    return [100 * row[cost] for row in ordered], [100 * row["accuracy"] for row in ordered]


def _frontier(points: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
    costs, accuracies, best = [], [], float("-inf")
    for cost, accuracy in zip(*points, strict=True):
        if accuracy > best:
            costs.append(cost)
            accuracies.append(accuracy)
            best = accuracy
    return costs, accuracies


def _share(paths: Mapping[str, float], segment: int, width: int) -> float:
    return sum(share for path, share in paths.items() if path.split("-")[segment : segment + 1] == [str(width)])
