"""Is routing better than one path for all? Confidence thresholds along each fixed path of widths of trained QuEE runs.

    python benchmarks/mixed_widths.py '[RUN, RUN, RUN]' --budgets '[0.02,0.03,0.04,0.05]'

For every budget the path and the threshold are chosen on the half of the validation split that chose QuEE's points, and
judged on test; the points without a threshold are the static networks of mixed widths. Prints JSON; `--output` writes
it, too.
"""

import statistics
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from eenet.quantization.curves import THRESHOLDS, judge_nodes, threshold_costs, threshold_nodes
from eenet.quantization.paths import path_name
from jsonargparse import auto_cli
from report import finish

from eenet.backbones.base import to_device
from eenet.cli.runs import Run, open_run
from eenet.quantization import QuantizedNetwork, point_for_budget
from lightning_modules import QuEE
from lightning_modules.quee import Nodes, halves


class Candidate(NamedTuple):
    """A path, possibly cut at an exit, a threshold before its end, and what they give on some samples."""

    path: tuple[int, ...]
    threshold: float
    accuracy: float
    cost: float


def main(runs: list[str], budgets: list[float] | None = None, output: Path | None = None) -> None:
    """Judge runs that differ in their seed.

    Args:
        runs: Run folders of QuEE.
        budgets: Mean BitOPs as fractions of the float network's.
        output: JSON file.
    """
    found = [judge(open_run(folder), budgets or [0.02, 0.03, 0.04, 0.05]) for folder in runs]
    finish({"runs": runs, "budgets": found, "summary": summary(found)}, output)


@torch.no_grad()
def judge(run: Run, budgets: list[float]) -> dict[str, Any]:
    """By budget, static networks and thresholds along every path, chosen on validation and judged on test samples."""
    model = run.model
    assert isinstance(model, QuEE)
    _, chosen_on = halves(recorded(run, "val"))
    judged_on = recorded(run, "test")
    paths = model.network.tree.nodes
    full = [path for path in paths if len(path) == model.network.tree.segments]
    kinds = {
        "static": [(path, float("inf")) for path in paths],
        "thresholds": [(path, threshold) for path in full for threshold in THRESHOLDS],
    }
    candidates = {
        kind: [candidate(model.network, path, threshold, chosen_on) for path, threshold in settings]
        for kind, settings in kinds.items()
    }
    rows: dict[str, Any] = {}
    for budget in budgets:
        rows[str(budget)] = {}
        for kind, points in candidates.items():
            best = point_for_budget(points, budget)
            judged = candidate(model.network, best.path, best.threshold, judged_on)
            threshold = None if best.threshold == float("inf") else best.threshold
            row = {
                "path": path_name(best.path),
                "threshold": threshold,
                "accuracy": judged.accuracy,
                "cost": judged.cost,
            }
            rows[str(budget)][kind] = row
    return rows


def recorded(run: Run, split: Any) -> Nodes:
    """Every node on the samples of a split."""
    for inputs, labels in run.data.loader(split):
        run.model.record_nodes(to_device(inputs, run.model), labels.to(run.device))
    return run.model.finish_nodes()


def candidate(network: QuantizedNetwork, path: tuple[int, ...], threshold: float, nodes: Nodes) -> Candidate:
    """Accuracy, and mean BitOPs as a fraction; without a threshold there are no heads before the end."""
    passed = [network.tree.index[path[:length]] for length in range(1, len(path) + 1)]
    ends = threshold_nodes(passed, nodes.statistics[..., 0], threshold)
    accuracy, cost = judge_nodes(ends, 1 - nodes.errors, threshold_costs(network))
    if threshold == float("inf"):
        cost = network.path_costs.static(path) / network.path_costs.full
    return Candidate(path, threshold, accuracy, cost)


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the runs, accuracy and cost in percent."""
    return {
        budget: {
            kind: {
                "accuracy": spread([rows[budget][kind]["accuracy"] for rows in found]),
                "cost": spread([rows[budget][kind]["cost"] for rows in found]),
                "paths": [rows[budget][kind]["path"] for rows in found],
            }
            for kind in found[0][budget]
        }
        for budget in found[0]
    }


def spread(values: list[float]) -> list[float]:
    """Mean and standard deviation, in percent."""
    return [100 * statistics.mean(values), 100 * statistics.stdev(values) if len(values) > 1 else 0.0]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    auto_cli(main)
