"""Conformal prediction sets of an early-exit network (split conformal, as in JEI-DNN).

The score of a class is one minus its probability. A set holds the classes whose score is at most a quantile of the true
classes' scores on calibration samples. Coverage of at least `1 - alpha` is promised on average over samples that are
exchangeable with the calibration samples, when network, temperatures and policy were fixed without looking at those:

* `common`: one quantile of the routed predictions; covers the routed network as a whole, not each exit.
* `per_exit`: a quantile per exit on the samples that leave there; covers the samples of each exit.
* `per_exit_all`: a quantile per exit on all samples; covers a static exit, and promises nothing about the samples that
  choose it.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from eenet.errors import UserError

ConformalMode = Literal["common", "per_exit", "per_exit_all"]
"""Which samples calibrate the quantile of an exit."""

MIN_SAMPLES = 20
"""An exit with fewer samples of its own is calibrated on all samples (JEI-DNN); its coverage is then not promised."""


def true_class_scores(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Scores of the true classes, in the arithmetic of `prediction_sets`, so that ties fall the same way.

    Args:
        probabilities: `(samples, exits, classes)`.
        labels: `(samples,)`.

    Returns:
        `(samples, exits)`.

    Example:
        >>> true_class_scores(torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]), torch.tensor([0]))
        tensor([[0.2500, 0.5000]])
    """
    index = labels[:, None, None].expand(*probabilities.shape[:2], 1)
    return 1 - probabilities.gather(2, index).squeeze(2)


def conformal_quantile(scores: Tensor, alpha: float) -> Tensor:
    """The quantile of level `ceil((n + 1)(1 - alpha)) / n` of scores, of the kind that numpy calls `higher`.

    JEI-DNN's rule. Below the maximum it is one order statistic above the smallest that keeps the promise, so expected
    coverage is above `1 - alpha` by up to `2 / (n + 1)`, ties apart.

    Args:
        scores: `(samples,)`.
        alpha: Share of true classes that may be missed, in (0, 1).

    Returns:
        A scalar.

    Raises:
        UserError: Alpha is outside (0, 1), or asks for more samples.

    Example:
        >>> conformal_quantile(torch.arange(1.0, 11.0), alpha=0.5)
        tensor(7.)
    """
    if not 0 < alpha < 1:
        raise UserError("alpha", alpha, "is the share of true classes that sets may miss, in (0, 1)")
    samples = len(scores)
    rank = math.ceil((samples + 1) * (1 - alpha) - 1e-9)  # 10 * (1 - 0.7) is 3, whatever binary fractions make of it
    if rank > samples:
        needed = math.ceil(1 / alpha - 1e-9) - 1
        raise UserError(
            "alpha",
            alpha,
            f"needs at least {needed} calibration samples for a quantile and one has {samples}; give more samples, "
            "a larger alpha, or fewer quantiles: `per_exit_all` has all samples for each exit, `common` for one",
        )
    return scores.kthvalue(min(rank + 1, samples)).values


def conformal_quantiles(true_scores: Tensor, exits: Tensor, alpha: float, mode: ConformalMode) -> Tensor:
    """The quantile of each exit, calibrated in one of three ways.

    Args:
        true_scores: Of every exit, from `true_class_scores`, `(samples, exits)`.
        exits: Where the samples leave, `(samples,)`.
        alpha: Share of true classes that may be missed, in (0, 1).
        mode: Which samples calibrate an exit.

    Returns:
        `(exits,)`.

    Raises:
        UserError: Alpha is outside (0, 1), or asks for more samples than an exit has.

    Example:
        >>> scores = torch.tensor([[0.1, 0.0], [0.2, 0.1], [0.9, 0.4], [0.8, 0.2]])
        >>> conformal_quantiles(scores, torch.tensor([0, 0, 1, 1]), 0.5, "common")
        tensor([0.4000, 0.4000])
        >>> conformal_quantiles(scores, torch.tensor([0, 0, 1, 1]), 0.5, "per_exit_all")
        tensor([0.9000, 0.4000])
    """
    if mode == "common":
        routed = true_scores.gather(1, exits[:, None]).squeeze(1)
        return conformal_quantile(routed, alpha).expand(true_scores.shape[1])
    quantiles = []
    for exit, scores in enumerate(true_scores.T):
        own = scores[exits == exit]
        use_all = mode == "per_exit_all" or len(own) < MIN_SAMPLES
        quantiles.append(conformal_quantile(scores if use_all else own, alpha))
    return torch.stack(quantiles)


def prediction_sets(probabilities: Tensor, exits: Tensor, quantiles: Tensor) -> Tensor:
    """The classes in each sample's set; a set can be empty.

    Args:
        probabilities: Of the exits that samples left at, `(samples, classes)`.
        exits: Where they left, `(samples,)`.
        quantiles: `(exits,)`.

    Returns:
        Bool, `(samples, classes)`.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        >>> prediction_sets(probabilities, torch.tensor([0, 1]), torch.tensor([0.25, 0.5]))
        tensor([[ True, False],
                [ True,  True]])
    """
    return 1 - probabilities <= quantiles[exits][:, None]


def coverage(sets: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose set holds the true class: a scalar from sets `(samples, classes)` and labels `(samples,)`.

    Example:
        >>> coverage(torch.tensor([[True, False], [True, True]]), torch.tensor([1, 1]))
        tensor(0.5000, dtype=torch.float64)
    """
    return sets.gather(1, labels[:, None]).double().mean()


def set_size(sets: Tensor) -> Tensor:
    """Mean number of classes in sets `(samples, classes)`, the inefficiency: a scalar.

    Example:
        >>> set_size(torch.tensor([[True, False], [True, True]]))
        tensor(1.5000, dtype=torch.float64)
    """
    return sets.sum(1).double().mean()


def summarise_sets(sets: Tensor, labels: Tensor, exits: Tensor, num_exits: int) -> dict[str, Any]:
    """Coverage and size of sets, of the routed network and of the samples of each exit, as plain values.

    Args:
        sets: `(samples, classes)`.
        labels: `(samples,)`.
        exits: Where samples left, `(samples,)`.
        num_exits: Of the network.

    Returns:
        `coverage`, `set_size` (mean number of classes), and `exits`: a row per exit with `count`, `coverage` and
        `set_size`, the last two `None` where nobody left.

    Example:
        >>> sets = torch.tensor([[True, False], [True, True]])
        >>> summarise_sets(sets, torch.tensor([1, 1]), torch.tensor([1, 1]), num_exits=2)["exits"]
        [{'count': 0, 'coverage': None, 'set_size': None}, {'count': 2, 'coverage': 0.5, 'set_size': 1.5}]
    """
    return summarise_coverage(sets.gather(1, labels[:, None]).squeeze(1), sets.sum(1), exits, num_exits)


def summarise_coverage(covered: Tensor, sizes: Tensor, exits: Tensor, num_exits: int) -> dict[str, Any]:
    """What `summarise_sets` gives, from two numbers per sample.

    Args:
        covered: Whether the set holds the true class, `(samples,)`.
        sizes: Classes in the set, `(samples,)`.
        exits: Where samples left, `(samples,)`.
        num_exits: Of the network.
    """
    rows: list[dict[str, Any]] = []
    for exit in range(num_exits):
        own = exits == exit
        found = _means(covered[own], sizes[own]) if own.any() else {"coverage": None, "set_size": None}
        rows.append({"count": int(own.sum()), **found})
    return {**_means(covered, sizes), "exits": rows}


def _means(covered: Tensor, sizes: Tensor) -> dict[str, float]:
    return {"coverage": covered.double().mean().item(), "set_size": sizes.double().mean().item()}
