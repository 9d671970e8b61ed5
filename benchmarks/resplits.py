"""Do the promises hold? Coverage of conformal sets and violations of certified risks, over resplits of a run's samples.

    python benchmarks/resplits.py RUN --splits 200

The validation and test samples of a run are pooled and split anew; everything is chosen on one part and judged on the
other, at the run's own gates. Prints JSON; `--output` writes it, too.
"""

import json
import math
import warnings
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import auto_cli
from scipy.stats import betabinom
from torch import Tensor

from eenet.api.opening import open_run, read_split
from eenet.calibration import (
    ConformalMode,
    Scored,
    conformal_quantiles,
    coverage,
    policy_for_budget,
    policy_for_risk,
    prediction_sets,
    set_size,
    true_class_scores,
)
from eenet.reporting import gather_exits, write_json


def main(
    run: str,
    splits: int = 200,
    alpha: float = 0.1,
    budget: float = 0.5,
    risk: float = 0.02,
    delta: float = 0.1,
    output: Path | None = None,
) -> None:
    """Resplit a run's samples many times.

    Args:
        run: Run folder.
        splits: Resplits, with seeds from 0.
        alpha: Miscoverage of the conformal sets, at the point of the budget.
        budget: Mean fraction of the full network's MACs.
        risk: Excess error over the full network that is certified.
        delta: Probability that a certificate may be wrong.
        output: JSON file.
    """
    opened = open_run(run)
    parts = [read_split(opened, split) for split in ("val", "test")]
    logits = torch.cat([block for part in parts for block in part.logits.split(len(part.labels))])
    labels = torch.cat([part.labels for part in parts])
    network, policy = opened.model.network.cpu(), next(iter(opened.model.policies().values()))
    with torch.no_grad():
        scores = network.gate(logits[:, :-1])
    predictions = logits.argmax(-1)
    scored = Scored(predictions, scores, predictions == labels[:, None], network.costs.fractions())
    probabilities = logits.softmax(-1)
    true_scores = true_class_scores(probabilities, labels)
    size = len(parts[0].labels)
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in get_args(ConformalMode)}
    excesses, costs = [], []
    for seed in range(splits):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        val, test = order[:size], order[size:]
        chosen = policy_for_budget(policy, scored.rows(val), budget)
        exits = {"val": scored.rows(val).exits(chosen), "test": scored.rows(test).exits(chosen)}
        routed = gather_exits(probabilities[test], exits["test"])
        for mode, rows in found.items():
            quantiles = conformal_quantiles(
                true_scores[val],
                exits["val"],
                alpha,
                mode,  # type: ignore[arg-type]
                labels=labels[val],
                num_classes=probabilities.shape[2],
            )
            sets = prediction_sets(routed, exits["test"], quantiles.values)
            rows.append((coverage(sets, labels[test]).item(), set_size(sets).item()))
        certified = policy_for_risk(policy, scored.rows(val), risk, delta)
        held_out = scored.rows(test)
        lost = held_out.correct[:, -1].double() - held_out.right(certified).double()
        excesses.append(lost.mean().item())
        costs.append(held_out.cost(certified))
    report = {
        "run": run,
        "splits": splits,
        "calibration_samples": size,
        "test_samples": len(labels) - size,
        "coverage_band_95": band(size, len(labels) - size, alpha),
        "conformal": {mode: summary(rows) for mode, rows in found.items()},
        "risk": {
            "asked": risk,
            "delta": delta,
            "violations": sum(excess > risk for excess in excesses) / splits,
            "mean_excess": sum(excesses) / splits,
            "mean_macs_fraction": sum(costs) / splits,
        },
    }
    print(json.dumps(report, indent=2))
    if output is not None:
        write_json(output, report)


def band(calibration: int, test: int, alpha: float) -> list[float]:
    """Where coverage on a finite test set lies in 95 of 100 splits, for exchangeable samples without ties."""
    rank = min(math.ceil((calibration + 1) * (1 - alpha)) + 1, calibration)
    law = betabinom(test, rank, calibration + 1 - rank)
    return [law.ppf(level) / test for level in (0.025, 0.975)]


def summary(rows: list[tuple[float, float]]) -> dict[str, float]:
    values: Tensor = torch.tensor(rows, dtype=torch.float64)
    low, high = values[:, 0].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean, size = values.mean(0).tolist()
    return {"coverage": mean, "coverage_low": low, "coverage_high": high, "set_size": size}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli(main)
