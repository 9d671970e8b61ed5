import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from eenet.calibration import (
    Scored,
    fit_schedule,
    fit_scheduler,
    policy_for_accuracy,
    policy_for_budget,
    policy_for_risk,
)
from eenet.errors import UserError
from eenet.policies import FixedExit, Patience, Policy, SequentialGates, Threshold

COSTS = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
SHARED = Threshold([0.0, 0.0])


def make_scored(scores: torch.Tensor) -> Scored:
    correct = torch.rand(len(scores), 3) < torch.tensor([0.6, 0.75, 0.9])
    return Scored(torch.randint(0, 3, (len(scores), 3)), scores, correct, COSTS)


def calibrated(samples: int = 600) -> tuple[Scored, torch.Tensor, torch.Tensor]:
    """Logits whose confidence tells how likely they are right, more so at later exits."""
    labels = torch.randint(0, 4, (samples,))
    signal = torch.rand(samples, 1, 1) * torch.tensor([1.0, 2.0, 4.0])[:, None]
    logits = torch.randn(samples, 3, 4) + signal * torch.nn.functional.one_hot(labels, 4)[:, None]
    predictions = logits.argmax(-1)
    scores = logits[:, :-1].softmax(-1).amax(-1)
    return Scored(predictions, scores, predictions == labels[:, None], COSTS), logits, labels


@given(
    arrays("float32", (12, 2), elements=st.floats(0, 1, width=16)).map(torch.from_numpy),
    st.floats(0.25, 0.99),
)
def test_the_threshold_is_the_highest_that_keeps_the_budget(scores: torch.Tensor, budget: float) -> None:
    scored = make_scored(scores)
    chosen = policy_for_budget(SHARED, scored, budget)
    assert isinstance(chosen, Threshold)
    assert scored.cost(chosen) <= budget
    threshold = chosen.thresholds[0].item()
    higher = [value for value in [*scores.flatten().tolist(), float("inf")] if value > threshold]
    assert all(scored.cost(Threshold([value] * 2)) > budget for value in higher)


@pytest.mark.parametrize("policy", [SHARED, Threshold([0.1, -0.3]), SequentialGates(), Patience()])
def test_every_family_keeps_the_budget_and_spends_it(policy: Policy) -> None:
    scored = make_scored(torch.randn(500, 2))
    for budget in (0.6, 0.8, 1.0) if not isinstance(policy, Patience) else (0.9, 1.0):
        cost = scored.cost(policy_for_budget(policy, scored, budget))
        assert cost <= budget
        assert cost > budget - 0.01 or isinstance(policy, Patience)


def test_a_budget_that_allows_everything_lets_nobody_leave() -> None:
    scored = make_scored(torch.rand(50, 2))
    assert scored.cost(policy_for_budget(SHARED, scored, 1.0)) == 1


def test_a_budget_that_cannot_be_met_says_what_the_cheapest_setting_costs() -> None:
    with pytest.raises(UserError, match=r"cheapest setting costs 0\.250"):
        policy_for_budget(SHARED, make_scored(torch.rand(5, 2)), 0.2)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan")])
def test_budgets_outside_the_unit_interval_are_refused(budget: float) -> None:
    with pytest.raises(UserError, match=r"in \(0, 1\]"):
        policy_for_budget(SHARED, make_scored(torch.rand(5, 2)), budget)


def test_a_policy_without_a_knob_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter that trades"):
        policy_for_budget(FixedExit(), make_scored(torch.rand(5, 2)), 0.5)


def test_the_cheapest_setting_that_keeps_the_accuracy_is_found_by_brute_force() -> None:
    scored, _, _ = calibrated(150)
    least = scored.correct[:, -1].double().mean() - 0.05
    keeping = []
    for value in [*scored.scores.flatten().tolist(), float("inf")]:
        policy = Threshold([value] * 2)
        if scored.right(policy).double().mean() >= least:
            keeping.append(scored.cost(policy))
    cost = scored.cost(policy_for_accuracy(SHARED, scored, 5.0))
    assert min(keeping) <= cost <= min(keeping) + 0.02
    assert scored.right(policy_for_accuracy(SHARED, scored, 5.0)).double().mean() >= least


def test_risk_is_certified_at_a_dearer_setting_than_accuracy_alone_asks_for() -> None:
    scored, _, _ = calibrated(3000)
    certified, hoped = policy_for_risk(SHARED, scored, 0.05, 0.1), policy_for_accuracy(SHARED, scored, 5.0)
    assert scored.cost(hoped) < scored.cost(certified) < 1
    lost = scored.correct[:, -1].double().mean() - scored.right(certified).double().mean()
    assert lost < 0.05


@pytest.mark.parametrize("drop", [-1.0, float("inf"), float("nan")])
def test_a_drop_that_makes_no_sense_is_refused(drop: float) -> None:
    with pytest.raises(UserError, match="max-accuracy-drop"):
        policy_for_accuracy(SHARED, make_scored(torch.rand(5, 2)), drop)


def test_the_scheduler_beats_random_order_and_keeps_its_budget() -> None:
    scored, logits, labels = calibrated(1000)
    gate = fit_scheduler(logits, labels, steps=100)
    with torch.no_grad():
        scores = gate(logits[:, :-1])
    right, wrong = (scores[scored.correct[:, :-1] == found].mean() for found in (True, False))
    assert right > wrong + 0.5
    scheduled = scored._replace(scores=scores)
    policy = fit_schedule(scheduled, 0.6, steps=100)
    assert 0.55 < scheduled.cost(policy) <= 0.6
    shares = torch.bincount(scheduled.exits(policy), minlength=3) / len(labels)
    at_random = (shares * scored.correct.float().mean(0)).sum()
    assert scheduled.right(policy).float().mean() > at_random + 0.05
    again = fit_scheduler(logits, labels, steps=100)
    assert all(torch.equal(a, b) for a, b in zip(gate.parameters(), again.parameters(), strict=True))
