"""How sure a study of so many texts is: bootstrap intervals over prompts."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from eenet.decoding.oracle import cheapest_on_average

DRAWS = 10_000
ORACLE_DRAWS = 200
"""Fewer, as each solves a knapsack."""


def score_intervals(scores: Tensor, seed: int) -> list[dict[str, float]]:
    """95 % percentile bootstrap intervals, over prompts, of every plan's mean score and of its gain over all layers.

    Args:
        scores: `(prompts, plans)`, the full model last.
        seed: Of the draws.

    Returns:
        For each plan `score_low` and `score_high`; `gain`, its mean score less the full model's on the same prompts,
        with `gain_low` and `gain_high`. With one prompt there is nothing to draw from, and intervals are points.

    Example:
        >>> score_intervals(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), seed=0)[0]["gain_high"]
        -1.0
    """
    scores = scores.double()
    return [
        {
            **_interval("score", scores[:, plan], seed),
            "gain": (scores[:, plan] - scores[:, -1]).mean().item(),
            **_interval("gain", scores[:, plan] - scores[:, -1], seed),
        }
        for plan in range(scores.shape[1])
    ]


def oracle_interval(scores: Tensor, budgets: Sequence[int], seed: int) -> dict[str, float]:
    """The 95 % percentile bootstrap interval, over prompts, of the layers that the oracle of mean scores needs.

    Args:
        scores: `(prompts, plans)`, the full model last.
        budgets: Layers of each plan.
        seed: Of the draws.

    Returns:
        `layers_low` and `layers_high`.
    """
    costs = torch.tensor(list(budgets))
    draws = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(ORACLE_DRAWS):
        drawn = scores[torch.randint(len(scores), (len(scores),), generator=draws)]
        found.append(costs[cheapest_on_average(drawn, costs, full=len(costs) - 1)].double().mean().item())
    low, high = np.quantile(found, (0.025, 0.975))
    return {"layers_low": float(low), "layers_high": float(high)}


def _interval(name: str, values: Tensor, seed: int) -> dict[str, float]:
    if len(values) == 1:
        low = high = values.item()
    else:
        draws = {"n_resamples": DRAWS, "method": "percentile", "rng": np.random.default_rng(seed)}
        low, high = bootstrap((values.numpy(),), np.mean, **draws).confidence_interval
    return {f"{name}_low": float(low), f"{name}_high": float(high)}
