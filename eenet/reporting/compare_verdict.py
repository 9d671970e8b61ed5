"""A comparison in words: which curve is best at which budget, by how much, and whether that is more than the spread."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from eenet.reporting.compare import STATIC_MODELS, Group, Row, Spread, spread
from eenet.reporting.compare_curves import Comparison, Curve, envelope
from eenet.reporting.compare_table import Sheet
from eenet.reporting.speed import conditions, read_bench

LATENCIES = {"p50 ms": "p50_ms", "times as fast in MACs": "theoretical_speedup", "by the clock": "realised_speedup"}
"""Columns of the table of latencies, and their fields in `bench.json`."""

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
    return [*(sentence(comparison, budget) for budget in comparison.budgets), f"The full network: {_accuracy(full)}."]


def sentence(comparison: Comparison, budget: float) -> str:
    """Which curve is best within a budget.

    Of every curve the accuracy at the budget is read off the line through its points, as for its area. The leader's
    distance to the next, or to the full network where there is none, is taken seed by seed where both have the seeds,
    and is called more than the spread where it is above its own standard deviation over them.
    """
    standings = sorted(standing_at(comparison, budget), key=lambda standing: -standing.mean)
    at = f"Within {100 * budget:g} % of the MACs"
    if not standings:
        return f"{at}: no curve has a point that is cheap enough."
    first, *others = standings
    led = f"{at}: {first.name}, {_accuracy(spread(list(first.accuracies.values())))}"
    full = full_network(comparison).mean
    second = others[0] if others else Standing("the full network", dict.fromkeys(first.accuracies, full))
    sign, where = (-1, "below") if not others and first.mean < full else (1, "ahead of")
    shared = [seed for seed in first.accuracies if seed in second.accuracies]
    pairs = [first.accuracies[seed] - second.accuracies[seed] for seed in shared] or [first.mean - second.mean]
    ahead = spread([sign * pair for pair in pairs])
    by = f"{100 * ahead.mean:.2f}" + ("" if ahead.deviation is None else f" ± {100 * ahead.deviation:.2f}")
    if not shared:
        doubt = "no seed in common, so that nothing is known of the spread"
    elif ahead.deviation is None:
        doubt = f"one seed{' in common' if others else ''}, so that nothing is known of the spread"
    elif len(shared) < ENOUGH:
        doubt = f"{len(shared)} seeds, which are too few to say so"
    elif ahead.mean > ahead.deviation:
        doubt = f"more than the spread over {len(shared)} seeds"
    else:
        doubt = f"not more than the spread over {len(shared)} seeds, so that neither is shown to be better"
    return f"{led}, {by} points {where} {second.name}: {doubt}."


def standing_at(comparison: Comparison, budget: float) -> Iterator[Standing]:
    """Every curve that has a point within the budget."""
    for curve in comparison.curves:
        heights = {seed: envelope(_rows(curve, seed), budget) for seed in _seeds(curve)}
        if heights and all(height is not None for height in heights.values()):
            yield Standing(curve.name, {seed: height for seed, height in heights.items() if height is not None})


def full_network(comparison: Comparison) -> Spread:
    """Accuracy of the dearest backbone without exits: of its own run, else of the last exits on it."""
    groups = [group for curve in comparison.curves for group in curve.groups]
    on_it = [group for group in groups if group.results["backbone"] == comparison.reference.results["backbone"]]
    group = min(on_it, key=lambda group: group.results["method"] != STATIC_MODELS)
    return spread([rows["static_exits"][-1]["accuracy"] for rows in group.rows])


def latency_sheet(comparison: Comparison) -> Sheet:
    """What `eenet bench` measured of the runs, where they have it, with the checkpoint that their results are of."""
    sections: dict[str, list[list[str]]] = {}
    for group in (group for curve in comparison.curves for group in curve.groups):
        for run in group.runs:
            tag = run.results.get("checkpoint", "last")
            bench = read_bench(run.folder / ("bench.json" if tag == "last" else f"bench.{tag}.json"))
            if bench is None:
                continue
            for batch in bench["batches"]:
                where = f"batch {batch['batch_size']}, {conditions(bench)}"
                sections[f"{group.label}, seed {run.results.get('seed')}: {where}"] = [
                    [row["name"], *(f"{row[key]:.2f}" for key in LATENCIES.values())] for row in batch["rows"]
                ]
    return Sheet("By the clock", ["network", *LATENCIES], sections, "")


def _seeds(curve: Curve) -> list[Any]:
    return [seed for seed in curve.groups[0].seeds if all(seed in group.seeds for group in curve.groups)]


def _rows(curve: Curve, seed: Any) -> list[Row]:
    def of(group: Group) -> list[Row]:
        return group.rows[group.seeds.index(seed)]["operating_points"]

    return [row for group in curve.groups for row in of(group)]


def _accuracy(value: Spread) -> str:
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"
    return f"{100 * value.mean:.2f}{deviation} % right"
