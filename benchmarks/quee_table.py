"""Tables of the studies of QuEE: `python benchmarks/quee_table.py FOLDER`, FOLDER with a tested run for every seed.

Accuracies are of the test split in percent, BitOPs in percent of the float network's, means and standard deviations
over the seeds.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Results = list[dict[str, Any]]


def mean(values: Sequence[float], digits: int = 2) -> str:
    """Mean and spread, or the value of one seed."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown; rows that say the same are one, with all that they are called."""
    merged: list[list[str]] = []
    for name, *cells in rows:
        if merged and merged[-1][1:] == cells:
            merged[-1][0] = f"{merged[-1][0].split(' to ')[0]} to {name}"
        else:
            merged.append([name, *cells])
    for row in (head, ["---"] * len(head), *merged):
        print("| " + " | ".join(row) + " |")
    print()


def at(points: Sequence[dict[str, Any] | None]) -> str:
    """A point of every seed, with its paths where they have one."""
    found = [point for point in points if point]
    if len(found) < len(points):
        return f"met by {len(found)} seeds" if found else "cannot be met"
    paths = ", ".join(sorted({point["path"] for point in found if point["path"]}))
    accuracy, cost = mean([100 * point["accuracy"] for point in found]), fmean(100 * point["cost"] for point in found)
    return f"{accuracy} at {cost:.2f}" + (f" ({paths})" if paths else "")


def best(points: Sequence[dict[str, Any]], budget: float) -> float:
    """The best test accuracy of a curve within a budget, in percent."""
    return max((100 * point["accuracy"] for point in points if point["cost"] <= budget), default=float("nan"))


def static(seeds: Results, width: str, exit: int) -> str:
    """An exit of the network at one width."""
    found = [results["static_widths"][width][exit] for results in seeds]
    return f"{mean([100 * row['accuracy'] for row in found])} ({100 * found[0]['bitops_fraction']:.2f})"


def gain(rows: Sequence[dict[str, Any]], kind: str) -> str:
    """Points that a kind of point has over thresholds along the best path, seed by seed."""
    if any(row[kind] is None or row["thresholds"] is None for row in rows):
        return ""
    return mean([100 * (row[kind]["accuracy"] - row["thresholds"]["accuracy"]) for row in rows])


def main(folder: str) -> None:
    """Print the tables."""
    seeds: Results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*/results.json"))]
    print(f"seeds {[found['seed'] for found in seeds]}\n")
    exits = range(len(seeds[0]["exits"]))
    rows = [[width, *(static(seeds, width, exit) for exit in exits)] for width in seeds[0]["static_widths"]]
    table(["width", *(f"exit {exit}" for exit in exits)], rows)
    by_budget = [list(rows) for rows in zip(*(found["at_budgets"] for found in seeds), strict=True)]
    names = [f"{100 * rows[0]['budget']:g}" for rows in by_budget]
    kinds = {
        "union": "union",
        "quee": "predictors",
        "thresholds": "thresholds, best path",
        "static": "static, best path",
    }
    points = [[at([row[kind] for row in rows]) for kind in kinds] for rows in by_budget]
    gains = [[gain(rows, kind) for kind in ("quee", "union")] for rows in by_budget]
    table(
        ["budget, BitOPs %", *kinds.values(), "predictors less thresholds", "union less thresholds"],
        [[name, *row, *extra] for name, row, extra in zip(names, points, gains, strict=True)],
    )
    curves = [
        {**found["curves_of_other_predictors"], **{kind: found["curves"][kind] for kind in ("quee", "thresholds")}}
        for found in seeds
    ]
    rows = [
        [name, *(mean([best(found[kind], row[0]["budget"]) for found in curves]) for kind in curves[0])]
        for name, row in zip(names, by_budget, strict=True)
    ]
    table(["best on test within, BitOPs %", *curves[0]], rows)
    summaries = [found["predictors"]["summary"] for found in seeds]
    table(["predictors", "mean"], [[key, mean([one[key] for one in summaries], 4)] for key in summaries[0]])


if __name__ == "__main__":
    main(*sys.argv[1:])
