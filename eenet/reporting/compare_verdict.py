"""A comparison in words: which curve is best at which budget, by how much, and whether that is more than the spread."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from eenet.errors import UserError
from eenet.reporting.compare import Group, Row, Spread, spread
from eenet.reporting.compare_curves import Comparison, Curve, envelope
from eenet.reporting.compare_table import Sheet

ENOUGH = 3
"""Least number of seeds for a claim that one is better."""


@dataclass(frozen=True)
class Standing:
    """A curve at a budget.

    Attributes:
        name: Of the curve.
        accuracies: Of each seed that has all points of the curve.
    """

    name: str
    accuracies: dict[Any, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.accuracies.values())


def verdict(comparison: Comparison) -> list[str]:
    """A sentence for each budget, and one on the full network."""
    full = full_network(comparison)
    found = [sentence(comparison, budget) for budget in comparison.budgets]
    return found if full is None else [*found, f"The full network: {_accuracy(full)}."]


def sentence(comparison: Comparison, budget: float) -> str:
    """Which curve is best within a budget.

    Of every curve the accuracy at the budget is read off the line through its points, as for its area. The leader's
    distance to the next is taken seed by seed where both have the seeds, and is called more than the spread where it is
    above its own standard deviation over them.
    """
    standings = sorted(standing_at(comparison, budget), key=lambda standing: -standing.mean)
    at = f"Within {100 * budget:g} % of the MACs"
    if not standings:
        return f"{at}: no curve has a point that is cheap enough."
    first, *others = standings
    led = f"{at}: {first.name}, {_accuracy(spread(list(first.accuracies.values())))}"
    if not others:
        return f"{led}; nothing else is compared there."
    second = others[0]
    shared = [seed for seed in first.accuracies if seed in second.accuracies]
    pairs = [first.accuracies[seed] - second.accuracies[seed] for seed in shared] or [first.mean - second.mean]
    ahead = spread(pairs)
    by = f"{100 * ahead.mean:.2f}" + ("" if ahead.deviation is None else f" ± {100 * ahead.deviation:.2f}")
    if ahead.deviation is None:
        doubt = "one seed in common, so that nothing is known of the spread"
    elif len(shared) < ENOUGH:
        doubt = f"{len(shared)} seeds, which are too few to say so"
    elif ahead.mean > ahead.deviation:
        doubt = f"more than the spread over {len(shared)} seeds"
    else:
        doubt = f"not more than the spread over {len(shared)} seeds, so that neither is shown to be better"
    return f"{led}, {by} points ahead of {second.name}: {doubt}."


def standing_at(comparison: Comparison, budget: float) -> Iterator[Standing]:
    """Every curve that has a point within the budget."""
    for curve in comparison.curves:
        heights = {seed: envelope(_rows(curve, seed), budget) for seed in _seeds(curve)}
        if heights and all(height is not None for height in heights.values()):
            yield Standing(curve.name, {seed: height for seed, height in heights.items() if height is not None})


def full_network(comparison: Comparison) -> Spread | None:
    """Accuracy of the dearest backbone without exits: of its own run, else of the last exits on it; if one is known."""
    groups = [group for curve in comparison.curves for group in curve.groups]
    on_it = [group for group in groups if group.results["backbone"] == comparison.reference.results["backbone"]]
    for group in sorted(on_it, key=lambda group: group.results["method"] != "backbone"):
        return spread([rows["static_exits"][-1]["accuracy"] for rows in group.rows])
    return None


def latency_sheet(comparison: Comparison) -> Sheet:
    """What `eenet bench` measured of the runs, where they have it."""
    sections: dict[str, list[list[str]]] = {}
    for curve in comparison.curves:
        for group in curve.groups:
            for run in group.runs:
                for where, rows in _benches(run.folder / "bench.json"):
                    name = f"{group.label}, seed {run.results.get('seed')}: {where}"
                    sections[name] = [
                        [
                            row["name"],
                            f"{row['p50_ms']:.2f}",
                            f"{row['theoretical_speedup']:.2f}",
                            f"{row['realised_speedup']:.2f}",
                        ]
                        for row in rows
                    ]
    headings = ["network", "p50 ms", "times as fast in MACs", "by the clock"]
    return Sheet("By the clock", headings, sections, "")


def _benches(path: Any) -> Iterator[tuple[str, list[Row]]]:
    if not path.is_file():
        return
    try:
        bench = json.loads(path.read_text())
        conditions = f"{bench['device']}, {bench['threads']} threads, {bench['runtime']}"
        for batch in bench["batches"]:
            yield f"batch {batch['batch_size']}, {conditions}", batch["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("bench.json", str(path), "cannot be read; `eenet bench` writes it") from error


def _seeds(curve: Curve) -> list[Any]:
    return [seed for seed in curve.groups[0].seeds if all(seed in group.seeds for group in curve.groups)]


def _rows(curve: Curve, seed: Any) -> list[Row]:
    def of(group: Group) -> list[Row]:
        return group.rows[group.seeds.index(seed)]["operating_points"]

    return [row for group in curve.groups for row in of(group)]


def _accuracy(value: Spread) -> str:
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"
    return f"{100 * value.mean:.2f}{deviation} % right"
