"""The promise of risk control, by enumeration of all outcomes and over fresh calibration sets."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from eenet.calibration import certify, check_level, excess_risk_p_values, fixed_sequence, samples_needed
from eenet.errors import UserError


def draw(rows: int, samples: int, differ: float, excess: float) -> torch.Tensor:
    """Losses whose mean is `excess`, not 0 with probability `differ`."""
    u = torch.rand(rows, samples)
    worse = (differ + excess) / 2
    return (u < worse).long() - ((u >= worse) & (u < differ)).long()


def capital_by_hand(losses: list[int], risk: float, delta: float) -> float:
    """The p-value of losses in the order of the bets, sample by sample."""
    level, total, squares, variance, capital, best = (1 - risk) / 2, 0.5, 0.25, 0.25, 1.0, 1.0
    for i, loss in enumerate(losses, start=1):
        stake = min(math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance)), 0.75 / level)
        gain = (1 - loss) / 2
        capital *= 1 + stake * (gain - level)
        best = max(best, capital)
        total += gain
        squares += (gain - total / (i + 1)) ** 2
        variance = squares / (i + 1)
    return 1 / best


def test_p_values_against_a_loop() -> None:
    losses = torch.cat([draw(10, 50, 0.3, 0.0), draw(10, 50, 0.3, 0.3)])
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    expected = [capital_by_hand(row[order].tolist(), 0.2, 0.05) for row in losses]
    assert excess_risk_p_values(losses, 0.2, 0.05, seed=3).tolist() == pytest.approx(expected)
    assert min(expected) < 0.5 < max(expected)


@pytest.mark.parametrize(("risk", "differ"), [(0.3, 0.3), (0.3, 0.5), (0.3, 1.0), (0.6, 0.8)])
def test_p_values_are_exactly_valid_over_all_outcomes(risk: float, differ: float) -> None:
    """With a mean loss of exactly `risk`, `P(p <= u) <= u` at every u, summed over all 3^9 outcomes."""
    outcomes = torch.tensor(list(itertools.product([-1, 0, 1], repeat=9)))
    worse, better = (differ + risk) / 2, (differ - risk) / 2
    chance = torch.tensor([better, 1 - differ, worse], dtype=torch.float64)[outcomes + 1].prod(1)
    assert chance.sum().item() == pytest.approx(1)
    p, order = excess_risk_p_values(outcomes, risk, delta=0.1).sort()
    assert (chance[order].cumsum(0) <= p + 1e-12).all()
    assert ((p < 0.3) & (chance[order] > 0)).any()


@pytest.mark.parametrize("differ", [0.04, 0.2])
def test_p_values_are_super_uniform_at_the_boundary(differ: float) -> None:
    trials = 2000
    p = excess_risk_p_values(draw(trials, 400, differ, 0.03), risk=0.03, delta=0.1).numpy()
    for level in (0.02, 0.05, 0.1, 0.3, 0.6):
        assert (p <= level).sum() <= binom.ppf(0.999, trials, level)
    assert (p <= 0.3).any()


def test_the_promise_is_kept_over_resplits() -> None:
    """The last two of five candidates are just above the level; certifying one of them is a violation."""
    trials, samples, delta, risk = 300, 800, 0.1, 0.03
    violations, certified = 0, []
    for seed in range(trials):
        rows = [(0.01, 0.0), (0.03, 0.0), (0.05, 0.01), (0.08, 0.0305), (0.08, 0.031)]
        losses = torch.cat([draw(1, samples, *row) for row in rows])
        certified.append(certify(losses, risk, delta, seed=seed))
        violations += certified[-1] is not None and certified[-1] >= 3
    assert 0 < violations <= binom.ppf(0.999, trials, delta)
    assert np.mean([found is not None and found >= 1 for found in certified]) > 0.95


def test_candidates_without_excess_are_certified() -> None:
    """Power: the same errors as the full network, and as many but elsewhere."""
    same, elsewhere = torch.zeros(1, 1000), draw(100, 1000, 0.02, 0.0)
    assert certify(same, risk=0.02, delta=0.1) == 0
    found = [certify(torch.cat([same, row[None]]), risk=0.02, delta=0.1) for row in elsewhere]
    assert found.count(1) >= 95


def test_p_values_learn_the_variance() -> None:
    """Hoeffding's p-value for losses in [-1, 1] sees only their mean; predictions that rarely differ deserve more."""
    losses = torch.zeros(1, 2000)
    losses[0, :20], losses[0, 20:30] = 1, -1
    hoeffding = math.exp(-2000 * (0.02 - 0.005) ** 2 / 2)
    assert hoeffding > 0.5
    assert excess_risk_p_values(losses, 0.02, 0.05).item() < 0.01


def test_testing_stops_at_the_first_candidate_that_is_not_rejected() -> None:
    bad, good = torch.ones(1, 300), torch.zeros(1, 300)
    assert certify(torch.cat([good, good, bad, good]), 0.02, 0.1) == 1
    assert certify(torch.cat([bad, good]), 0.02, 0.1) is None
    assert fixed_sequence(torch.tensor([0.1]), 0.1) == 0
    assert fixed_sequence(torch.tensor([0.01, 0.02]), 0.1) == 1


def test_the_seed_orders_the_bets_and_repeats() -> None:
    losses = draw(3, 300, 0.1, 0.0)
    first, again, other = (excess_risk_p_values(losses, 0.05, 0.1, seed) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize(("risk", "delta"), [(0.02, 0.1), (0.005, 0.1), (0.1, 0.01), (0.5, 0.3)])
def test_the_fewest_samples_are_the_fewest(risk: float, delta: float) -> None:
    needed = samples_needed(risk, delta)
    assert needed >= math.log(1 / delta) / math.log1p(0.75 * risk / ((1 - risk) / 2) / 2)
    assert certify(torch.zeros(1, needed), risk, delta) == 0
    assert excess_risk_p_values(torch.zeros(1, needed - 1), risk, delta) > delta
    with pytest.raises(UserError, match=f"at least {needed} calibration samples at risk {risk} and there are "):
        certify(torch.zeros(1, needed - 1), risk, delta)


@pytest.mark.parametrize(
    ("risk", "delta", "field"),
    [
        *((risk, 0.1, "risk") for risk in (0.0, 1.0, -0.02, 1e-9, float("nan"))),
        *((0.02, delta, "delta") for delta in (0.0, 1.0, -0.1, float("nan"))),
    ],
)
def test_promises_that_make_no_sense_are_refused(risk: float, delta: float, field: str) -> None:
    with pytest.raises(UserError, match=rf"^{field} ="):
        check_level(risk, delta, samples=10**6)


def test_other_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 to 1"):
        certify(torch.full((1, 500), 1.5), 0.02, 0.1)
