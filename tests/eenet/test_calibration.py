import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from eenet.calibration import threshold_for_budget
from eenet.errors import UserError
from eenet.policies import Threshold

COSTS = torch.tensor([0.25, 0.5, 1.0])


def mean_cost(scores: torch.Tensor, threshold: float) -> float:
    exits = Threshold([threshold] * 2).exits(torch.zeros(len(scores), 3), scores)
    return COSTS[exits].mean().item()


@given(
    arrays("float32", (12, 2), elements=st.floats(0, 1, width=16)).map(torch.from_numpy),
    st.floats(0.25, 0.99),
)
def test_the_threshold_is_the_highest_that_keeps_the_budget(scores: torch.Tensor, budget: float) -> None:
    threshold = threshold_for_budget(scores, COSTS, budget)
    assert mean_cost(scores, threshold) <= budget
    higher = [value for value in [*scores.flatten().tolist(), float("inf")] if value > threshold]
    assert all(mean_cost(scores, value) > budget for value in higher)


def test_a_budget_that_allows_everything_lets_nobody_leave() -> None:
    assert threshold_for_budget(torch.rand(5, 2), COSTS, 1.0) == float("inf")


def test_a_budget_below_the_first_exit_is_refused() -> None:
    with pytest.raises(UserError, match=r"first exit alone costs 0\.250"):
        threshold_for_budget(torch.rand(5, 2), COSTS, 0.2)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan")])
def test_budgets_outside_the_unit_interval_are_refused(budget: float) -> None:
    with pytest.raises(UserError, match=r"in \(0, 1\]"):
        threshold_for_budget(torch.rand(5, 2), COSTS, budget)
