import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from eenet.calibration import (
    Scored,
    Sweep,
    fit_schedule,
    fit_scheduler,
    policy_for_accuracy,
    policy_for_budget,
    policy_for_risk,
    standard_error,
)
from eenet.calibration.geometric import fit_geometric, geometric_shares, thresholds_for_shares
from eenet.errors import UnmetError, UserError
from eenet.policies import FixedExit, Patience, Policy, SequentialGates, Threshold
from eenet.reporting import gather_exits

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


def every_threshold(scored: Scored) -> list[tuple[float, float]]:
    """Cost and accuracy of every shared threshold, one by one."""
    settings = [Threshold([value] * 2) for value in [*scored.scores.flatten().tolist(), float("inf")]]
    return [(scored.cost(policy), scored.right(policy).double().mean().item()) for policy in settings]


@given(
    arrays("float32", (12, 2), elements=st.floats(0, 1, width=16)).map(torch.from_numpy),
    st.floats(0.25, 1),
)
def test_a_budget_has_the_most_accurate_threshold_and_of_equals_the_cheapest(
    scores: torch.Tensor, budget: float
) -> None:
    scored = make_scored(scores)
    chosen = policy_for_budget(SHARED, scored, budget)
    kept = [found for found in every_threshold(scored) if found[0] <= budget]
    accuracy, cost = max((right, -cost) for cost, right in kept)
    assert (scored.right(chosen).double().mean(), scored.cost(chosen)) == (accuracy, -cost)


@pytest.mark.parametrize(
    "policy", [SHARED, Threshold([0.1, -0.3]), Threshold(["inf", 0.2]), SequentialGates(), Patience()]
)
def test_a_sweep_is_routing_at_every_knob(policy: Policy) -> None:
    scored = make_scored(torch.randn(20, 2))
    swept = Sweep(policy, scored)
    settings = [policy.turned(knob) for knob in swept.knobs.tolist()]
    assert swept.costs.tolist() == [scored.cost(setting) for setting in settings]
    right = [scored.right(setting).double().mean().item() for setting in settings]
    assert swept.means(scored.correct).tolist() == pytest.approx(right)
    values = torch.randn(20, 3)
    means = [gather_exits(values, scored.exits(setting)).double().mean().item() for setting in settings]
    assert swept.means(values).tolist() == pytest.approx(means)


@pytest.mark.parametrize("policy", [SHARED, Threshold([0.1, -0.3]), SequentialGates(), Patience()])
def test_no_larger_budget_is_less_accurate(policy: Policy) -> None:
    scored = make_scored(torch.randn(500, 2))
    budgets = (0.6, 0.8, 1.0) if not isinstance(policy, Patience) else (0.9, 1.0)
    chosen = [policy_for_budget(policy, scored, budget) for budget in budgets]
    assert all(scored.cost(point) <= budget for point, budget in zip(chosen, budgets, strict=True))
    accuracies = [scored.right(point).double().mean().item() for point in chosen]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] >= scored.correct[:, -1].double().mean() or isinstance(policy, Patience)


def test_a_dearer_setting_that_is_less_accurate_is_not_taken() -> None:
    scores = torch.tensor([[0.9, 0.9], [0.8, 0.1], [0.2, 0.7], [0.1, 0.2]])
    correct = torch.tensor([[True, False, False], [True, True, False], [False, True, False], [False, False, True]])
    scored = Scored(torch.zeros(4, 3), scores, correct, COSTS)
    chosen = policy_for_budget(SHARED, scored, 1.0)
    assert scored.exits(chosen).tolist() == [0, 0, 1, 2]
    assert scored.cost(policy_for_budget(SHARED, scored, 1.0, dearest=True)) == 1
    assert scored.cost(policy_for_budget(SHARED, scored, 0.6, dearest=True)) == 0.5


def test_standard_errors_against_a_bootstrap_of_clusters() -> None:
    clusters = torch.arange(40).repeat_interleave(5)
    right = torch.rand(200) < torch.rand(40).repeat_interleave(5)
    alone = [right[torch.randint(200, (200,))].double().mean().item() for _ in range(2000)]
    drawn = (torch.randint(40, (40,)).unsqueeze(1) * 5 + torch.arange(5) for _ in range(2000))
    together = [right[rows.flatten()].double().mean().item() for rows in drawn]
    assert standard_error(right) == pytest.approx(torch.tensor(alone).std().item(), rel=0.08)
    assert standard_error(right, clusters) == pytest.approx(torch.tensor(together).std().item(), rel=0.08)
    assert standard_error(right, clusters) > 1.2 * standard_error(right)


def test_a_budget_that_cannot_be_met_says_what_the_cheapest_setting_costs() -> None:
    with pytest.raises(UnmetError, match=r"cheapest setting costs 0\.250"):
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
    keeping = [cost for cost, right in every_threshold(scored) if right >= least]
    assert scored.cost(policy_for_accuracy(SHARED, scored, 5.0)) == min(keeping)
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


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_geometric_shares_spend_the_budget_and_the_next_ratio_breaks_it(budget: float) -> None:
    scored = make_scored(torch.randn(4000, 2))
    policy = fit_geometric(scored, budget)
    shares = (scored.exits(policy).bincount(minlength=3) / 4000).double()
    ratio = (shares[2] / shares[1]).item()
    assert shares[1] / shares[0] == pytest.approx(ratio, rel=0.05)
    assert scored.cost(policy) <= budget
    dearer = thresholds_for_shares(scored.scores, geometric_shares(ratio * 1.1, 3))
    assert scored.cost(dearer) > budget
    with pytest.raises(UnmetError, match=r"geometric shares cost at least 0\.25"):
        fit_geometric(scored, 0.2)
