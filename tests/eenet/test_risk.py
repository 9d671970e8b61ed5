"""The promise of risk control, by enumeration of all outcomes and over fresh calibration sets."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from eenet.calibration import (
    Scored,
    betting_p_value,
    certify,
    check_level,
    check_samples,
    content_order,
    paired_p_value,
    policy_for_risk,
    samples_needed,
)
from eenet.calibration.risk import NUISANCE, _evidence
from eenet.errors import UnmetError, UserError
from eenet.policies import Threshold


def draw(rows: int, samples: int, differ: float, excess: float) -> torch.Tensor:
    """Losses whose mean is `excess`, not 0 with probability `differ`."""
    u = torch.rand(rows, samples)
    worse = (differ + excess) / 2
    return (u < worse).long() - ((u >= worse) & (u < differ)).long()


def paired(losses: torch.Tensor, risk: float, delta: float) -> np.ndarray:
    """P-values of rows of losses."""
    counts = zip((losses == 1).sum(1).tolist(), (losses == -1).sum(1).tolist(), strict=True)
    return np.array([paired_p_value(*row, losses.shape[1], risk, delta) for row in counts])


@pytest.mark.parametrize(("worse", "better", "samples", "risk"), [(1, 2, 30, 0.2), (0, 0, 20, 0.15), (3, 4, 25, 0.4)])
def test_p_values_against_the_probability_of_all_outcomes(worse: int, better: int, samples: int, risk: float) -> None:
    """At every share of differing samples in the interval, by the multinomial law; the maximum is met but for 5 %."""
    outcomes = np.array([(k, m) for k in range(samples + 1) for m in range(samples + 1 - k)], dtype=float)
    m, k = outcomes[:, 1], outcomes[:, 0]
    strong = (m - k < samples * risk) & (
        _evidence(m, k, samples, risk) >= _evidence(np.array(worse), np.array(better), samples, risk) - 1e-9
    )
    counts = np.column_stack([outcomes[strong], samples - outcomes[strong].sum(1)])
    missed, differ = 0.1 * NUISANCE, worse + better
    shares = np.linspace(risk, 1, 200)
    inside = (binom.cdf(differ, samples, shares) >= missed / 2) & (binom.sf(differ - 1, samples, shares) >= missed / 2)
    largest = max(
        multinomial.pmf(counts, samples, [(d - risk) / 2, (d + risk) / 2, 1 - d]).sum() for d in shares[inside]
    )
    assert largest + missed <= paired_p_value(worse, better, samples, risk, 0.1) <= 1.05 * largest + missed + 1e-6


@pytest.mark.parametrize(("risk", "differ"), [(0.3, 0.3), (0.3, 0.5), (0.3, 1.0), (0.6, 0.8)])
@pytest.mark.parametrize("samples", [5, 12])
def test_p_values_are_exactly_valid_over_all_outcomes(risk: float, differ: float, samples: int) -> None:
    """With a mean loss of exactly `risk`, `P(p <= u) <= u` at every u."""
    outcomes = [(m, k) for m in range(samples + 1) for k in range(samples + 1 - m)]
    chances = [(differ + risk) / 2, (differ - risk) / 2, 1 - differ]
    chance = multinomial.pmf([(m, k, samples - m - k) for m, k in outcomes], samples, chances)
    p = np.array([paired_p_value(m, k, samples, risk, 0.1) for m, k in outcomes])
    order = p.argsort()
    assert (chance[order].cumsum() <= p[order] + 1e-12).all()
    assert ((p[order] < 0.3) & (chance[order] > 1e-12)).any()


@given(st.integers(1, 60), st.floats(0.01, 0.9), st.data())
def test_evidence_grows_with_what_is_better_and_falls_with_what_is_worse(
    samples: int, risk: float, data: st.DataObject
) -> None:
    """On which the worst case rests: an excess error of exactly the level, and the bound within each cell."""
    better = data.draw(st.integers(0, samples - 1))
    worse = data.draw(st.integers(0, samples - 1 - better))
    if worse + 1 - better < samples * risk:
        least, now, most = (
            float(_evidence(np.array(m), np.array(k), samples, risk))
            for m, k in ((worse + 1, better), (worse, better), (worse, better + 1))
        )
        assert -1e-9 <= least <= now + 1e-9 <= most + 2e-9


@pytest.mark.parametrize("differ", [0.04, 0.2])
def test_p_values_are_super_uniform_at_the_boundary(differ: float) -> None:
    trials = 500
    p = paired(draw(trials, 200, differ, 0.03), risk=0.03, delta=0.1)
    for level in (0.02, 0.05, 0.1, 0.3, 0.6):
        assert (p <= level).sum() <= binom.ppf(0.999, trials, level)
    assert (p <= 0.1).mean() > 0.05


def test_no_order_of_the_samples_changes_a_certificate() -> None:
    """The same 600 losses gave p-values from 0.06 to 0.65 by the order in which they were bet on."""
    scores = torch.rand(600, 2)
    correct = torch.rand(600, 3) < torch.tensor([0.6, 0.8, 0.9])
    scored = Scored(torch.randint(0, 5, (600, 3)), scores, correct, torch.tensor([0.25, 0.5, 1.0]).double())
    chosen = policy_for_risk(Threshold([0.0, 0.0]), scored, 0.3, 0.1)
    for _ in range(10):
        again = policy_for_risk(Threshold([0.0, 0.0]), scored.rows(torch.randperm(600)), 0.3, 0.1)
        assert again.arguments() == chosen.arguments()


def test_an_order_by_content_forgets_where_samples_stood_and_splits_equal_ones() -> None:
    contents = [bytes([value % 7]) for value in range(700)]
    shuffled = [contents[place] for place in torch.randperm(700)]
    ordered = [contents[place] for place in content_order(contents)]
    assert ordered == [shuffled[place] for place in content_order(shuffled)]
    assert sorted(content_order(contents).tolist()) == list(range(700))
    counts = [ordered[:350].count(bytes([value])) for value in range(7)]
    assert min(counts) > 30
    assert max(counts) < 70


@pytest.mark.parametrize(
    ("worse", "better", "samples", "risk", "mapie"),
    [
        (9, 2, 600, 0.02, 0.9793760488351407),
        (20, 10, 2000, 0.02, 0.7020751747456493),
        (30, 0, 600, 0.1, 0.31842838708013943),
        (12, 8, 300, 0.05, 0.7649969790738985),
        (60, 20, 1000, 0.1, 0.08302268488779764),
    ],
)
def test_p_values_are_below_those_that_see_the_mean_alone(
    worse: int, better: int, samples: int, risk: float, mapie: float
) -> None:
    """`compute_hoeffding_bentkus_p_value` of mapie 1.6.0, for `(1 + loss) / 2` at `(1 + risk) / 2`."""
    mean, level = (1 + (worse - better) / samples) / 2, (1 + risk) / 2
    divergence = mean * math.log(mean / level) + (1 - mean) * math.log((1 - mean) / (1 - level))
    hoeffding = math.exp(-samples * divergence)
    bentkus = math.e * binom.cdf(math.ceil(samples * mean), samples, level)
    assert min(hoeffding, bentkus) == pytest.approx(mapie)
    assert paired_p_value(worse, better, samples, risk, 0.1) < mapie / 2


@pytest.mark.parametrize(
    ("samples", "differ", "excess", "risk", "delta", "before"),
    [
        (600, 0.05, 0.01, 0.03, 0.10, 0.55),
        (300, 0.10, 0.01, 0.05, 0.10, 0.52),
    ],
)
def test_more_is_certified_than_by_bets_in_an_order(
    samples: int, differ: float, excess: float, risk: float, delta: float, before: float
) -> None:
    """`before` is the share of 2,000 calibration sets whose median betting p-value, over 31 orders, was below delta."""
    p = paired(draw(200, samples, differ, excess), risk, delta)
    assert (p <= delta).mean() > before


def capital_by_hand(losses: list[float], risk: float, delta: float) -> float:
    """The p-value of losses in the order of the bets, sample by sample."""
    total, squares, variance, capital, best = 0.5, 0.25, 0.25, 1.0, 1.0
    for i, loss in enumerate(losses, start=1):
        stake = min(math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance)), 0.75 / (1 - risk))
        capital *= 1 + stake * (risk - loss)
        best = max(best, capital)
        total += loss
        squares += (loss - total / (i + 1)) ** 2
        variance = squares / (i + 1)
    return 1 / best


def test_bets_against_a_loop() -> None:
    losses = torch.rand(20, 50) * torch.rand(20, 1)
    expected = [capital_by_hand(row.tolist(), 0.2, 0.05) for row in losses]
    assert [betting_p_value(row, 0.2, 0.05) for row in losses] == pytest.approx(expected)
    assert min(expected) < 0.5 < max(expected)


@pytest.mark.parametrize("mean", [0.3, 0.5])
def test_bets_are_exactly_valid_over_all_outcomes(mean: float) -> None:
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=torch.float64)
    chance = (1 - outcomes + (2 * outcomes - 1) * mean).prod(1)
    p, order = torch.tensor([betting_p_value(row, mean, 0.1) for row in outcomes]).sort()
    assert (chance[order].cumsum(0) <= p + 1e-12).all()
    assert (p < 0.3).any()


def test_the_promise_is_kept_over_resplits() -> None:
    """The last two of five candidates are just above the level; certifying one of them is a violation."""
    trials, samples, delta, risk = 100, 800, 0.1, 0.03
    violations, certified = 0, []
    for _ in range(trials):
        rows = [(0.01, 0.0), (0.03, 0.0), (0.05, 0.01), (0.08, 0.0305), (0.08, 0.031)]
        losses = torch.cat([draw(1, samples, *row) for row in rows])
        certified.append(certify(losses, risk, delta))
        violations += certified[-1] is not None and certified[-1] >= 3
    assert 0 < violations <= binom.ppf(0.999, trials, delta)
    assert np.mean([found is not None and found >= 1 for found in certified]) > 0.95


def test_candidates_without_excess_are_certified() -> None:
    """Power: the same errors as the full network, and as many but elsewhere."""
    same, elsewhere = torch.zeros(1, 1000), draw(40, 1000, 0.02, 0.0)
    assert certify(same, risk=0.02, delta=0.1) == 0
    found = [certify(torch.cat([same, row[None]]), risk=0.02, delta=0.1) for row in elsewhere]
    assert found.count(1) >= 38


def test_testing_stops_at_the_first_candidate_that_is_not_rejected() -> None:
    bad, good = torch.ones(1, 300), torch.zeros(1, 300)
    assert certify(torch.cat([good, good, bad, good]), 0.02, 0.1) == 1
    assert certify(torch.cat([bad, good]), 0.02, 0.1) is None


@pytest.mark.parametrize(("risk", "delta"), [(0.02, 0.1), (0.005, 0.1), (0.1, 0.01), (0.5, 0.3)])
def test_the_fewest_samples_are_the_fewest(risk: float, delta: float) -> None:
    needed = samples_needed(risk, delta)
    assert needed >= math.log(delta) / math.log1p(-risk)
    assert certify(torch.zeros(1, needed), risk, delta) == 0
    assert paired_p_value(0, 0, needed - 1, risk, delta) > delta
    with pytest.raises(UnmetError, match=f"at least {needed} samples to certify with at delta {delta} and there are "):
        certify(torch.zeros(1, needed - 1), risk, delta)


def test_the_fewest_texts_are_the_fewest() -> None:
    def without_losses(samples: int, risk: float, delta: float) -> float:
        return betting_p_value(torch.zeros(samples), risk, delta)

    needed = samples_needed(0.1, 0.1, without_losses)
    check_samples(0.1, 0.1, needed, without_losses)
    assert without_losses(needed, 0.1, 0.1) <= 0.1 < without_losses(needed - 1, 0.1, 0.1)
    with pytest.raises(UnmetError, match=f"at least {needed} samples"):
        check_samples(0.1, 0.1, needed - 1, without_losses)


@pytest.mark.parametrize(
    ("risk", "delta", "field"),
    [
        *((risk, 0.1, "risk") for risk in (0.0, 1.0, -0.02, 1e-9, float("nan"))),
        *((0.02, delta, "delta") for delta in (0.0, 1.0, -0.1, float("nan"))),
    ],
)
def test_promises_that_make_no_sense_are_refused(risk: float, delta: float, field: str) -> None:
    with pytest.raises(UserError, match=rf"^{field} ="):
        check_level(risk, delta)


def test_other_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        certify(torch.full((1, 500), 0.5), 0.02, 0.1)
    with pytest.raises(ValueError, match="from 0 to 1"):
        betting_p_value(torch.full((500,), -1.0), 0.02, 0.1)
