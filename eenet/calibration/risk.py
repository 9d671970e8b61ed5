"""Risk control: the cheapest operating point whose excess error over the full network is certified.

Learn-then-Test (Angelopoulos et al. 2021) with fixed sequence testing. The risk of a candidate is its excess error,
`E[1{early wrong} - 1{full wrong}]`, and the promise is that with probability at least `1 - delta` over the calibration
samples the certified candidate's risk is at most the level asked.

The promise assumes that the calibration samples and those met later are drawn independently from one distribution
(exchangeable, with no shift between them), and that network, candidates and their order were fixed without looking at
the calibration samples: data that chose the candidates cannot certify them. It is about the set of samples: in which
order they are stored changes no p-value and no choice.

The losses are -1, 0 or 1 and mostly 0. A p-value for 0/1 losses (Hoeffding, Bentkus, binomial: those of mapie) knows
only their mean and allows for the variance of a coin at that mean: 1/4 once mapped to [0, 1], where theirs is a quarter
of the share of samples that only one of the two predictions gets right. Counting the losses of 1 alone would drop what
leaving early gains. `paired_p_value` is exact for the two counts. Losses of any values from 0 to 1, as of texts, have
no such counts; theirs is a betting capital, `betting_p_value`.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import sha256

import numpy as np
import scipy
import torch
from torch import Tensor

from eenet.errors import UnmetError, UserError

NUISANCE = 0.02
"""Share of delta that is spent on what is not known of the share of samples that the two predictions differ on."""

CELLS = 128
"""Intervals of that share over which a probability is bounded; more are less conservative, by some percent of it."""

TAIL = 1e-9
"""Probability of counts that are not summed over; it is added."""

MAX_STAKE = 0.75
"""Share of the capital that one sample can lose at most; below 1 so that one error never ends the game."""

MIN_RISK = 1e-4
"""The smallest level that can be asked, a hundredth of a point."""


def certify(losses: Iterable[Tensor], risk: float, delta: float) -> int | None:
    """The cheapest candidate whose excess error is certified to be at most a level.

    Candidates are tested in their order, each at level delta, until one is not rejected (fixed sequence testing). The
    chance that any certified candidate exceeds the level is at most delta, however many there are.

    Args:
        losses: `full_correct - early_correct` of each candidate, `(samples,)`, from the safest candidate to the
            cheapest, an order that the samples had no part in.
        risk: Excess error allowed, a fraction in (0, 1).
        delta: Chance that the promise fails, in (0, 1).

    Returns:
        The candidate's number; `None` if not even the first is certified.

    Raises:
        UserError: Risk or delta out of range.
        UnmetError: So few samples that not even losses of 0 are certified.
        ValueError: A loss is not -1, 0 or 1.

    Example:
        >>> losses = torch.zeros(3, 600)
        >>> losses[1, :2], losses[2, :60] = 1, 1
        >>> certify(losses, risk=0.02, delta=0.1), certify(losses[2:], risk=0.02, delta=0.1)
        (1, None)
    """
    certified = None
    for number, row in enumerate(losses):
        if number == 0:
            check_level(risk, delta)
            check_samples(risk, delta, len(row))
        worse, better = int((row == 1).sum()), int((row == -1).sum())
        if worse + better != row.count_nonzero():
            raise ValueError("losses must be -1, 0 or 1")
        if paired_p_value(worse, better, len(row), risk, delta) > delta:
            break
        certified = number
    return certified


@cache
def paired_p_value(worse: int, better: int, samples: int, risk: float, delta: float) -> float:
    """P-value of the hypothesis that the excess error is above a level, from two counts.

    The exact unconditional test of paired proportions: how probable is evidence as strong as this, at most, under the
    hypothesis? Evidence is the likelihood ratio, which grows with `better` and falls with `worse`, so that the worst
    case has an excess error of exactly the level. It still depends on the share `d` of samples that the predictions
    differ on; the maximum is taken over a Clopper-Pearson interval of it (Berger & Boos 1994, "P values maximized over
    a confidence set for the nuisance parameter"), whose miss is added. Within each of `CELLS` parts of the interval the
    largest chance of `better` and the smallest of `worse` bound the probability.

    Args:
        worse: Samples that only the full network gets right.
        better: Samples that only the early exit gets right.
        samples: All samples.
        risk: The level.
        delta: Where the test will be made. It sets the interval's level; p-values are valid at any other level too.

    Returns:
        At least `NUISANCE * delta`, at most 1; 1 where the mean loss is not below the level.

    Example:
        >>> round(paired_p_value(worse=9, better=2, samples=600, risk=0.02, delta=0.1), 4)
        0.1048
    """
    special = scipy.special  # imported here, when it is used
    if worse - better >= samples * risk:
        return 1.0
    missed, differ = delta * NUISANCE, worse + better
    low = 0.0 if differ == 0 else float(special.betaincinv(differ, samples - differ + 1, missed / 2))
    high = 1.0 if differ == samples else float(special.betaincinv(differ + 1, samples - differ, 1 - missed / 2))
    if high <= risk:
        return missed
    shares = np.linspace(math.sqrt(max(low, risk)), math.sqrt(high), CELLS + 1) ** 2
    chances = ((shares - risk) / 2).clip(0, (1 - risk) / 2)  # of `better`; of `worse` it is the risk more
    others = _likely(samples, chances[0], chances[-1])
    limits = _as_strong(worse, better, samples, risk, others)
    others, limits = others[limits >= 0], limits[limits >= 0]
    higher, lower = chances[1:, None], chances[:-1, None] + risk
    rest = samples - others - limits
    below = np.where(
        rest > 0, special.betaincc(limits + 1, np.maximum(rest, 1), np.minimum(lower / (1 - higher), 1)), 1
    )
    ways = special.gammaln(samples + 1) - special.gammaln(others + 1) - special.gammaln(samples - others + 1)
    chance = np.exp(ways + special.xlogy(others, higher) + special.xlog1py(samples - others, -higher))
    return min(1.0, missed + 2 * TAIL + float((chance * below).sum(1).max()))


def _likely(samples: int, least: float, most: float) -> np.ndarray:
    """Counts that binomials of a chance between two have but for `TAIL` on either side (Chernoff's bounds)."""
    log = -math.log(TAIL)
    low = samples * least - math.sqrt(2 * samples * least * log)
    high = samples * most + math.sqrt(2 * samples * most * log) + log
    return np.arange(max(math.floor(low), 0), min(math.ceil(high), samples) + 1, dtype=float)


def _as_strong(worse: int, better: int, samples: int, risk: float, others: np.ndarray) -> np.ndarray:
    """For other counts of `better` the largest count of `worse` that is as strong evidence; -1 where none is."""
    least = _evidence(np.array(worse), np.array(better), samples, risk) - 1e-9
    low = np.full_like(others, -1)
    high = np.minimum(np.ceil(samples * risk + others) - 1, samples - others)
    while (low < high).any():
        middle = np.ceil((low + high) / 2)
        strong = _evidence(middle, others, samples, risk) >= least
        low, high = np.where(strong, middle, low), np.where(strong, high, middle - 1)
    return low


def _evidence(worse: np.ndarray, better: np.ndarray, samples: int, risk: float) -> np.ndarray:
    """Log likelihood ratio of two counts over the likeliest chances of them whose difference is the risk.

    Those solve the quadratic of Tango (1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design").
    """
    special = scipy.special  # imported here, when it is used
    linear = worse * (1 + risk) + better * (1 - risk) - 2 * samples * risk
    root = np.sqrt(linear**2 + 8 * samples * better * risk * (1 - risk))
    chance = ((linear + root) / (4 * samples)).clip(0, (1 - risk) / 2)
    same = samples - worse - better
    with np.errstate(divide="ignore"):
        expected = (
            special.xlogy(worse, chance + risk)
            + special.xlogy(better, chance)
            + special.xlogy(same, 1 - 2 * chance - risk)
        )
    return (
        special.xlogy(worse, worse / samples)
        + special.xlogy(better, better / samples)
        + special.xlogy(same, same / samples)
        - expected
    )


def betting_p_value(losses: Tensor, risk: float, delta: float) -> float:
    """P-value of the hypothesis that the mean of losses from 0 to 1 is above a level.

    The capital `prod_i (1 + stake_i (risk - loss_i))` is a supermartingale under the hypothesis whatever stakes the
    past suggests, and the inverse of its maximum is a p-value by Ville's inequality. The stakes are those of the
    predictable plug-in (Waudby-Smith & Ramdas 2023), `sqrt(2 log(1 / delta) / (n variance_{i-1}))`, truncated; they
    learn the variance, at the price of an order. It has to be one that the losses had no part in, as `content_order`.

    Args:
        losses: In the order of the bets, `(samples,)`.
        risk: The level.
        delta: Where the test will be made; stakes aim at it, and the p-value is valid at any other level too.

    Returns:
        In (0, 1].

    Raises:
        ValueError: A loss is outside [0, 1].

    Example:
        >>> round(betting_p_value(torch.zeros(20), 0.2, 0.1), 4), betting_p_value(torch.ones(20), 0.2, 0.1)
        (0.0322, 1.0)
    """
    if not ((losses >= 0) & (losses <= 1)).all():
        raise ValueError("losses must be from 0 to 1")
    losses, samples = losses.double(), len(losses)
    seen = torch.arange(1, samples + 1)
    mean = (0.5 + losses.cumsum(0)) / (seen + 1)
    variance = (0.25 + (losses - mean).square().cumsum(0)) / (seen + 1)
    known = torch.cat([losses.new_tensor([0.25]), variance[:-1]])
    stakes = (2 * math.log(1 / delta) / (samples * known)).sqrt().clamp_max(MAX_STAKE / (1 - risk))
    capital = torch.log1p(stakes * (risk - losses)).cumsum(0)
    return math.exp(-max(capital.max().item(), 0.0))


def content_order(contents: Iterable[bytes]) -> Tensor:
    """An order of samples at random that depends on what they are, and not on where they stand.

    Args:
        contents: What tells the samples from each other; equal ones are told apart by their count.

    Returns:
        Places, `(samples,)`.

    Example:
        >>> words = [b"early", b"exit", b"early", b"gate"]
        >>> [words[place] for place in content_order(words)] == [words[::-1][p] for p in content_order(words[::-1])]
        True
    """
    keys = list(_keys(contents))
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.long)


def _keys(contents: Iterable[bytes]) -> Iterator[bytes]:
    seen: Counter[bytes] = Counter()
    for content in contents:
        yield sha256(seen[content].to_bytes(8, "big") + content).digest()
        seen[content] += 1


def _without_losses(samples: int, risk: float, delta: float) -> float:
    return paired_p_value(0, 0, samples, risk, delta)


def samples_needed(risk: float, delta: float, p_value: Callable[[int, float, float], float] = _without_losses) -> int:
    """Fewest samples with which a candidate that errs exactly where the full network does is certified.

    Args:
        risk: The level.
        delta: Chance that the promise fails.
        p_value: Of so many losses of 0, the level and delta.

    Example:
        >>> samples_needed(risk=0.02, delta=0.1)
        115
    """

    def enough(samples: int) -> bool:
        return p_value(samples, risk, delta) <= delta

    high = 1
    while not enough(high):
        high *= 2
    return bisect_left(range(high), True, lo=high // 2, key=enough)


def check_level(risk: float, delta: float) -> None:
    """Raise a `UserError` for a promise that makes no sense: risk or delta out of range."""
    if not MIN_RISK <= risk < 1:
        raise UserError("risk", risk, f"is the excess error allowed, a fraction of at least {MIN_RISK} and below 1")
    if not 0 < delta < 1:
        raise UserError("delta", delta, "is the chance that the promise fails, in (0, 1)")


def check_samples(
    risk: float, delta: float, samples: int, p_value: Callable[[int, float, float], float] = _without_losses
) -> None:
    """Raise an `UnmetError` for a promise that so few samples cannot make whatever they say; see `samples_needed`."""
    needed = samples_needed(risk, delta, p_value)
    if samples < needed:
        raise UnmetError(
            "risk",
            risk,
            f"needs at least {needed} samples to certify with at delta {delta} and there are {samples}; "
            "give more samples, a larger risk or a larger delta",
        )
