"""JEI-DNN over a static quantized backbone at budgets of BitOPs: `python benchmarks/quee_static.py FOLDER BUDGET...`.

FOLDER holds the runs of `sh benchmarks/quee.sh static`. For each seed and budget the lambda and the point that are most
accurate on the validation split, among those that keep the budget there, are judged on the test split.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from eenet.calibration.curves import point_for_budget


class Judged(NamedTuple):
    """A point on the validation split and on the test split; accuracies and fractions of the BitOPs."""

    accuracy: float
    cost: float
    test_accuracy: float
    test_cost: float


def read_points(folder: Path) -> dict[int, list[Judged]]:
    """The points of all runs, by seed."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text())
        for row in results["operating_points"]:
            got = row["got"]
            point = Judged(got["accuracy"], got["bitops_fraction"], row["accuracy"], row["bitops_fraction"])
            found[results["seed"]].append(point)
    return found


def main(folder: str, *budgets: str) -> None:
    """Print a row of a table for each budget: mean and standard deviation over seeds."""
    seeds = read_points(Path(folder))
    print(f"seeds {sorted(seeds)}, {sum(map(len, seeds.values()))} points")
    for budget in map(float, budgets):
        chosen = [point_for_budget(points, budget) for points in seeds.values()]
        accuracies, cost = [100 * point.test_accuracy for point in chosen], fmean(point.test_cost for point in chosen)
        spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(f"| {100 * budget:g} | {fmean(accuracies):.2f} ± {spread:.2f} at {100 * cost:.1f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
