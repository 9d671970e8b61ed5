"""Risk control: the cheapest operating point whose excess error over the full network is certified.

Learn-then-Test (Angelopoulos et al. 2021) with fixed sequence testing. The risk of a candidate is its excess error,
`E[1{early wrong} - 1{full wrong}]`, and the promise is that with probability at least `1 - delta` over the calibration
samples the certified candidate's risk is at most the level asked.

The promise assumes that the calibration samples and those met later are drawn independently from one distribution
(exchangeable, with no shift between them), and that network, candidates and their order were fixed without looking at
the calibration samples: data that chose the candidates cannot certify them.

The losses are -1, 0 or 1 and mostly 0. A p-value for 0/1 losses (Hoeffding, Bentkus, binomial) knows only their mean
and allows for the variance of a coin at that mean: 1/4 once mapped to [0, 1], where theirs is a quarter of the share of
samples that only one of the two predictions gets right. Counting the losses of 1 alone would drop what leaving early
gains. The p-value here is a betting capital (Waudby-Smith & Ramdas 2023), which learns the variance. mapie's risk
controllers call the predictor themselves, candidate by candidate, and know the Hoeffding-Bentkus p-value of a
non-negative loss only, so they are not used.
"""

import math
from bisect import bisect_left

import torch
from torch import Tensor

from eenet.errors import UserError

MAX_STAKE = 0.75
"""Share of the capital that one sample can lose at most; below 1 so that one error never ends the game."""

MIN_RISK = 1e-4
"""The smallest level that can be asked, a hundredth of a point."""


def certify(losses: Tensor, risk: float, delta: float, seed: int = 0) -> int | None:
    """The cheapest candidate whose excess error is certified to be at most a level.

    Candidates are tested in their order, each at level delta, until one is not rejected (fixed sequence testing). The
    chance that any certified candidate exceeds the level is at most delta, however many there are.

    Args:
        losses: `full_correct - early_correct` of each candidate and sample, or any other excess loss from -1 to 1,
            `(candidates, samples)`; from
            the safest candidate to the cheapest, an order that the samples had no part in.
        risk: Excess error allowed, a fraction in (0, 1).
        delta: Chance that the promise fails, in (0, 1).
        seed: Of the order in which the samples are bet on.

    Returns:
        The candidate's number; `None` if not even the first is certified.

    Raises:
        UserError: Risk or delta out of range, or so few samples that not even losses of 0 are certified.

    Example:
        >>> losses = torch.zeros(3, 600)
        >>> losses[1, :2], losses[2, :60] = 1, 1
        >>> certify(losses, risk=0.02, delta=0.1), certify(losses[2:], risk=0.02, delta=0.1)
        (1, None)
    """
    check_level(risk, delta, losses.shape[1])
    return fixed_sequence(excess_risk_p_values(losses, risk, delta, seed), delta)


def excess_risk_p_values(losses: Tensor, risk: float, delta: float, seed: int = 0) -> Tensor:
    """P-values of the hypotheses that the mean loss is above a level.

    Losses are mapped to gains `x = (1 - loss) / 2` in [0, 1], whose mean is below `m = (1 - risk) / 2` under the
    hypothesis. Then the capital `prod_i (1 + stake_i (x_i - m))` is a supermartingale whatever stakes the past
    suggests, and the inverse of its maximum is a p-value by Ville's inequality. The stakes are those of the predictable
    plug-in (Waudby-Smith & Ramdas 2023), `sqrt(2 log(1 / delta) / (n variance_{i-1}))`, truncated.

    Args:
        losses: From -1 to 1, `(candidates, samples)`.
        risk: The level.
        delta: Where the test will be made; stakes aim at it, and the p-values are valid at any other level too.
        seed: Of the order in which the samples are bet on, the same for all candidates.

    Returns:
        `(candidates,)` float64, in (0, 1].

    Raises:
        ValueError: A loss is outside [-1, 1].

    Example:
        >>> excess_risk_p_values(torch.tensor([[0, 0, 0, 0], [-1, -1, -1, -1], [1, 1, 1, 1]]), 0.5, 0.1)
        tensor([0.1214, 0.0120, 1.0000], dtype=torch.float64)
    """
    if not (losses.abs() <= 1).all():
        raise ValueError("losses must be from -1 to 1")
    samples = losses.shape[1]
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).to(losses.device)
    gains = (1 - losses[:, order].double()) / 2
    level = (1 - risk) / 2
    seen = torch.arange(1, samples + 1, device=losses.device)
    mean = (0.5 + gains.cumsum(1)) / (seen + 1)
    variance = (0.25 + (gains - mean).square().cumsum(1)) / (seen + 1)
    known = torch.cat([torch.full_like(variance[:, :1], 0.25), variance[:, :-1]], dim=1)
    stakes = (2 * math.log(1 / delta) / (samples * known)).sqrt().clamp_max(MAX_STAKE / level)
    log_capital = torch.log1p(stakes * (gains - level)).cumsum(1)
    return (-log_capital.amax(1).clamp_min(0)).exp()


def fixed_sequence(p_values: Tensor, delta: float) -> int | None:
    """The last of the leading p-values that are at most delta, or `None`: fixed sequence testing.

    Example:
        >>> fixed_sequence(torch.tensor([0.01, 0.09, 0.2, 0.01]), 0.1), fixed_sequence(torch.tensor([0.2, 0.01]), 0.1)
        (1, None)
    """
    rejected = int((p_values <= delta).int().cumprod(0).sum())
    return rejected - 1 if rejected else None


def samples_needed(risk: float, delta: float) -> int:
    """Fewest samples with which a candidate that errs exactly where the full network does is certified.

    Example:
        >>> samples_needed(risk=0.02, delta=0.1)
        158
    """

    def enough(samples: int) -> bool:
        return bool(excess_risk_p_values(torch.zeros(1, samples), risk, delta) <= delta)

    high = 1
    while not enough(high):
        high *= 2
    return bisect_left(range(high), True, lo=high // 2, key=enough)


def check_level(risk: float, delta: float, samples: int) -> None:
    """Refuse a promise that cannot be kept, before anything is computed.

    Raises:
        UserError: Risk or delta out of range, or more samples are needed.
    """
    if not MIN_RISK <= risk < 1:
        raise UserError("risk", risk, f"is the excess error allowed, a fraction of at least {MIN_RISK} and below 1")
    if not 0 < delta < 1:
        raise UserError("delta", delta, "is the chance that the promise fails, in (0, 1)")
    needed = samples_needed(risk, delta)
    if samples < needed:
        raise UserError(
            "delta",
            delta,
            f"needs at least {needed} calibration samples at risk {risk} and there are {samples}; "
            "give more samples, a larger risk or a larger delta",
        )
