"""Conformal prediction sets of an early-exit network (split conformal, as in JEI-DNN).

The score of a class is one minus its probability. A set holds the classes whose score is at most a quantile of the true
classes' scores on calibration samples. Coverage of at least `1 - alpha` is promised on average over samples that are
exchangeable with the calibration samples, when network, temperatures and policy were fixed without looking at those:

* `common`: one quantile of the routed predictions; covers the routed network as a whole, not each exit.
* `per_exit`: a quantile per exit on the samples that leave there; covers the samples of each exit.
* `per_exit_all`: a quantile per exit on all samples; covers a static exit, and promises nothing about the samples that
  choose it.
* `per_class`: a quantile per class on the routed predictions of its samples (Mondrian or label-conditional sets: Vovk
  2012, "Conditional validity of inductive conformal predictors", section 4); covers the samples of each class.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from eenet.errors import UnmetError, UserError

ConformalMode = Literal["common", "per_exit", "per_exit_all", "per_class"]
"""Which samples calibrate a quantile."""

QuantileRule = Literal["jei_dnn", "textbook"]
"""Which order statistic a quantile is, see `conformal_quantile`."""

MIN_SAMPLES = 20
"""An exit with fewer samples of its own is calibrated on all samples (JEI-DNN); its coverage is then not promised."""

WHOLE = 1.0
"""The largest score: with this quantile a set holds every class."""


class Quantiles(NamedTuple):
    """Quantiles of one mode.

    Attributes:
        values: `(exits,)`; for `per_class` `(1, classes)`.
        rule: Which order statistic.
        fallbacks: Of each exit or class with too few samples of its own: `exit` or `class`, its `samples`, and what it
            has `instead`, a quantile of all samples or the whole set of classes.
    """

    values: Tensor
    rule: QuantileRule = "jei_dnn"
    fallbacks: list[dict[str, Any]] = []


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


def check_alpha(alpha: float) -> float:
    """A miscoverage is a share.

    Raises:
        UserError: It is outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise UserError("alpha", alpha, "is the share of true classes that sets may miss, in (0, 1)")
    return alpha


def samples_for_quantile(alpha: float) -> int:
    """Fewest calibration samples of which some order statistic keeps the promise.

    Example:
        >>> samples_for_quantile(0.1), samples_for_quantile(0.01)
        (9, 99)
    """
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_quantile(scores: Tensor, alpha: float, rule: QuantileRule = "jei_dnn") -> Tensor:
    """The order statistic of scores that sets are compared with.

    `textbook` is the `ceil((n + 1)(1 - alpha))`-th smallest (Angelopoulos & Bates 2023, "Conformal prediction: a gentle
    introduction", section 1): the smallest that keeps the promise, and infinite where there are too few scores; here
    `WHOLE`, the largest score there can be. `jei_dnn` is that paper's rule, the quantile of level
    `ceil((n + 1)(1 - alpha)) / n` of the kind that numpy calls `higher`. Below the maximum it is one order statistic
    above the textbook's, so expected coverage is above `1 - alpha` by up to `2 / (n + 1)`, ties apart.

    Args:
        scores: `(samples,)`.
        alpha: Share of true classes that may be missed, in (0, 1).
        rule: Which of the two.

    Returns:
        A scalar.

    Raises:
        UserError: Alpha is outside (0, 1).
        UnmetError: `jei_dnn` needs more samples.

    Example:
        >>> scores = torch.arange(1.0, 11.0) / 10
        >>> conformal_quantile(scores, alpha=0.5), conformal_quantile(scores, alpha=0.5, rule="textbook")
        (tensor(0.7000), tensor(0.6000))
        >>> conformal_quantile(scores, alpha=0.01, rule="textbook")
        tensor(1.)
    """
    check_alpha(alpha)
    samples = len(scores)
    rank = math.ceil((samples + 1) * (1 - alpha) - 1e-9)  # 10 * (1 - 0.7) is 3, whatever binary fractions make of it
    if rule == "textbook":
        return scores.kthvalue(rank).values if rank <= samples else scores.new_tensor(WHOLE)
    if rank > samples:
        needed = samples_for_quantile(alpha)
        raise UnmetError("alpha", alpha, f"needs at least {needed} calibration samples for a quantile, not {samples}")
    return scores.kthvalue(min(rank + 1, samples)).values


def conformal_quantiles(
    true_scores: Tensor,
    exits: Tensor,
    alpha: float,
    mode: ConformalMode,
    rule: QuantileRule = "jei_dnn",
    labels: Tensor | None = None,
    num_classes: int = 0,
) -> Quantiles:
    """The quantiles of one mode.

    Under `jei_dnn` an exit with fewer than `MIN_SAMPLES` samples, and an exit or class with too few for alpha, has the
    quantile of all samples; under `textbook` one with too few for alpha has the whole set, which keeps the promise.

    Args:
        true_scores: Of every exit, from `true_class_scores`, `(samples, exits)`.
        exits: Where the samples leave, `(samples,)`.
        alpha: Share of true classes that may be missed, in (0, 1).
        mode: Which samples calibrate a quantile.
        rule: Which order statistic it is.
        labels: `(samples,)`, for `per_class`.
        num_classes: For `per_class`.

    Raises:
        UserError: Alpha is outside (0, 1).
        UnmetError: `jei_dnn` needs more samples than there are.

    Example:
        >>> scores = torch.tensor([[0.1, 0.0], [0.2, 0.1], [0.9, 0.4], [0.8, 0.2]])
        >>> conformal_quantiles(scores, torch.tensor([0, 0, 1, 1]), 0.5, "common").values
        tensor([0.4000, 0.4000])
        >>> conformal_quantiles(scores, torch.tensor([0, 0, 1, 1]), 0.5, "per_exit_all").values
        tensor([0.9000, 0.4000])
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> conformal_quantiles(scores, torch.tensor([0, 0, 1, 1]), 0.5, "per_class", "textbook", labels, 2).values
        tensor([[0.4000, 0.2000]])
    """
    samples, num_exits = true_scores.shape
    routed = true_scores.gather(1, exits[:, None]).squeeze(1)
    if mode in ("common", "per_exit_all"):
        columns = true_scores.T if mode == "per_exit_all" else routed.expand(num_exits, samples)
        values = [conformal_quantile(scores, alpha, rule) for scores in columns]
        whole = rule == "textbook" and samples < samples_for_quantile(alpha)
        return Quantiles(torch.stack(values), rule, [{"samples": samples, "instead": "whole set"}] if whole else [])
    kind, groups, count = ("exit", exits, num_exits) if mode == "per_exit" else ("class", labels, num_classes)
    if groups is None:
        raise ValueError("a quantile per class needs labels")
    least = MIN_SAMPLES if mode == "per_exit" and rule == "jei_dnn" else 0
    instead = "all samples" if rule == "jei_dnn" else "whole set"
    values, fallbacks = [], []
    for group in range(count):
        everyone = true_scores[:, group] if mode == "per_exit" else routed
        own = everyone[groups == group]
        few = len(own) < max(least, samples_for_quantile(alpha))
        if few:
            fallbacks.append({kind: group, "samples": len(own), "instead": instead})
        values.append(conformal_quantile(everyone if few and rule == "jei_dnn" else own, alpha, rule))
    found = torch.stack(values)
    return Quantiles(found if mode == "per_exit" else found.unsqueeze(0), rule, fallbacks)


def prediction_sets(probabilities: Tensor, exits: Tensor, quantiles: Tensor) -> Tensor:
    """The classes in each sample's set; a set can be empty.

    Args:
        probabilities: Of the exits that samples left at, `(samples, classes)`.
        exits: Where they left, `(samples,)`.
        quantiles: `(exits,)`, or of each class `(1, classes)`.

    Returns:
        Bool, `(samples, classes)`.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        >>> prediction_sets(probabilities, torch.tensor([0, 1]), torch.tensor([0.25, 0.5]))
        tensor([[ True, False],
                [ True,  True]])
    """
    return 1 - probabilities <= (quantiles if quantiles.ndim == 2 else quantiles[exits][:, None])


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


def summarise_coverage(covered: Tensor, sizes: Tensor, exits: Tensor, num_exits: int) -> dict[str, Any]:
    """Coverage and size of sets, of the routed network and of the samples of each exit, as plain values.

    Args:
        covered: Whether the set holds the true class, `(samples,)`.
        sizes: Classes in the set, `(samples,)`.
        exits: Where samples left, `(samples,)`.
        num_exits: Of the network.

    Returns:
        `coverage`, `set_size` (mean number of classes), and `exits`: a row each with `count`, `coverage` and
        `set_size`, the last two `None` where there is no sample.
    """
    return {**_means(covered, sizes), "exits": coverage_rows(covered, sizes, exits, num_exits)}


def coverage_rows(covered: Tensor, sizes: Tensor, groups: Tensor, count: int) -> list[dict[str, Any]]:
    """`count`, `coverage` and `set_size` of the samples of each of so many groups; all tensors are `(samples,)`."""
    rows: list[dict[str, Any]] = []
    for group in range(count):
        own = groups == group
        found = _means(covered[own], sizes[own]) if own.any() else {"coverage": None, "set_size": None}
        rows.append({"count": int(own.sum()), **found})
    return rows


def _means(covered: Tensor, sizes: Tensor) -> dict[str, Any]:
    return {"coverage": covered.double().mean().item(), "set_size": sizes.double().mean().item()}
