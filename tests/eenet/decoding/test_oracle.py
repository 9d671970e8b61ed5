from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.decoding.oracle import best_at_budgets, cheapest_on_average, cheapest_sufficient, judge, traded
from eenet.errors import UserError
from eenet.metrics import choice_shares


@st.composite
def score_tables(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    prompts, plans = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    costs = draw(st.lists(st.integers(1, 7), min_size=plans, max_size=plans, unique=True))
    values = draw(st.lists(st.integers(0, 5), min_size=prompts * plans, max_size=prompts * plans))
    return torch.tensor(values).view(prompts, plans) / 5, torch.tensor(sorted(costs))


def every_choice(scores: torch.Tensor) -> list[torch.Tensor]:
    return [torch.tensor(choice) for choice in product(range(scores.shape[1]), repeat=len(scores))]


@settings(deadline=None, max_examples=60)
@given(score_tables())
def test_the_frontier_is_the_best_of_all_choices(table: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, costs = table
    budgets, best = best_at_budgets(scores, costs)
    judged = [judge(choice, scores, costs) for choice in every_choice(scores)]
    for budget, value in zip(budgets.tolist(), best.tolist(), strict=True):
        assert value == pytest.approx(max(row["score"] for row in judged if row["cost"] <= budget + 1e-9))
    assert budgets[0] == costs[0]
    assert budgets[-1] == costs[-1]


@settings(deadline=None, max_examples=60)
@given(score_tables())
def test_no_cheaper_choice_keeps_every_prompts_score(table: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, costs = table
    full = scores.shape[1] - 1
    chosen = judge(cheapest_sufficient(scores, costs, full), scores, costs)
    rows = torch.arange(len(scores))
    keeping = [choice for choice in every_choice(scores) if bool((scores[rows, choice] >= scores[:, full]).all())]
    assert chosen["cost"] == pytest.approx(min(judge(choice, scores, costs)["cost"] for choice in keeping))
    assert chosen["score"] >= scores[:, full].double().mean() - 1e-9


@settings(deadline=None, max_examples=60)
@given(score_tables())
def test_no_cheaper_choice_keeps_the_mean_score(table: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, costs = table
    full = scores.shape[1] - 1
    wanted = scores[:, full].double().mean().item() - 1e-6
    found = judge(cheapest_on_average(scores, costs, full), scores, costs)
    judged = [judge(choice, scores, costs) for choice in every_choice(scores)]
    assert found["score"] >= wanted
    assert found["cost"] == pytest.approx(min(row["cost"] for row in judged if row["score"] >= wanted))


@settings(deadline=None, max_examples=60)
@given(score_tables(), st.floats(0, 1))
def test_a_tradeoff_finds_the_largest_traded_sum(table: tuple[torch.Tensor, torch.Tensor], tradeoff: float) -> None:
    scores, costs = table
    found = judge(traded(scores, costs, tradeoff), scores, costs)
    best = max(row["score"] - tradeoff * row["cost"] for row in (judge(c, scores, costs) for c in every_choice(scores)))
    assert found["score"] - tradeoff * found["cost"] == pytest.approx(best)


@settings(deadline=None, max_examples=40)
@given(score_tables(), st.data())
def test_random_is_the_mean_over_all_shuffles(table: tuple[torch.Tensor, torch.Tensor], data: st.DataObject) -> None:
    from itertools import permutations

    scores, costs = table
    choice = data.draw(st.lists(st.integers(0, len(costs) - 1), min_size=len(scores), max_size=len(scores)))
    found = judge(torch.tensor(choice), scores, costs)
    shuffled = [judge(torch.tensor(order), scores, costs)["score"] for order in permutations(choice)]
    assert found["random"] == pytest.approx(sum(shuffled) / len(shuffled))
    assert float(choice_shares(torch.tensor(choice), len(costs)).sum()) == pytest.approx(1)


def test_costs_that_are_no_whole_numbers_are_refused() -> None:
    for costs in (torch.tensor([0.5, 1.0]), torch.tensor([0, 3])):
        with pytest.raises(UserError, match=r"costs = .*positive whole numbers"):
            best_at_budgets(torch.zeros(1, 2), costs)
