import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.decoding.oracle import judge
from eenet.decoding.prediction import cross_fitted, predictor_curve, rank_correlation
from eenet.decoding.probes import (
    TokenProbes,
    controller_curve,
    enough,
    first_above,
    token_oracle_curve,
)
from eenet.decoding.study import oracle_report
from eenet.errors import UserError
from eenet.policies import Threshold
from lightning_modules.probes import train_probes

COSTS = torch.tensor([1, 3, 4])
bools = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(bools)
def test_the_token_oracle_is_the_best_of_all_choices(rows: list[tuple[bool, bool]]) -> None:
    from eenet.decoding.oracle import best_at_budgets

    sufficient = torch.tensor([[*row, True] for row in rows])
    budgets, best = best_at_budgets(sufficient.double(), COSTS)
    curve = token_oracle_curve(sufficient, COSTS)
    for cost, share in curve:
        place = int(torch.searchsorted(budgets, cost + 1e-9)) - 1
        assert share == pytest.approx(best[place].item())
    assert curve[-1][1] == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8), st.floats(-2, 2, width=32))
def test_the_first_score_above_decides_as_the_threshold_policy(values: list[float], threshold: float) -> None:
    scores = torch.tensor(values).view(4, 2)
    policy = Threshold([threshold] * 2)
    expected = policy.exits(torch.zeros(4, 3), scores)
    assert torch.equal(first_above(scores, threshold), expected)


def test_enough_is_by_top_token_or_by_similarity_and_always_with_all_layers() -> None:
    agreement, similarity = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.8, 0.5]])
    assert enough(agreement, similarity, None).tolist() == [[True, False, True]]
    assert enough(agreement, similarity, 0.8).tolist() == [[False, True, True]]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_probes_learn_a_need_that_the_states_hold_and_none_that_they_do_not(kind: str) -> None:
    torch.manual_seed(0)
    states = torch.randn(600, 3, 6)
    known = (states[:, 0, 0] > states[:, 0, 1])[:, None] & torch.tensor([True, False, False])
    hidden = (torch.rand(600) > 0.5)[:, None] & torch.tensor([True, False, False])
    texts = torch.arange(600) // 10
    gains = []
    for target in (known, hidden):
        sufficient = target | torch.tensor([False, False, True])
        torch.manual_seed(1)
        probes = TokenProbes(6, 3, kind)  # type: ignore[arg-type]
        found = train_probes(probes, states[:400], sufficient[:400], texts[:400], seed=0, max_epochs=25)
        with torch.no_grad():
            curve = controller_curve(probes(states[400:]), sufficient[400:], COSTS)
        gains.append(max(row["score"] - row["random"] for row in curve))
        assert found["epochs"] <= 25
    assert gains[0] > 0.15
    assert gains[1] < 0.1


def test_the_best_weights_are_kept() -> None:
    torch.manual_seed(0)
    states, texts = torch.randn(60, 2, 4), torch.arange(60) // 3
    sufficient = torch.stack([states[:, 0, 0] > 0, torch.ones(60, dtype=torch.bool)], dim=1)
    probes = TokenProbes(4, 2)
    found = train_probes(probes, states, sufficient, texts, seed=5, max_epochs=4)
    names = texts.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(5))
    held = torch.isin(texts, names[order[: len(names) // 5]])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        probes(states[held]), sufficient[held, :-1].float()
    ).item()
    assert loss == pytest.approx(found["val_loss"], abs=1e-5)


def test_wrong_probes_are_refused() -> None:
    with pytest.raises(UserError, match="probe = 'tree'"):
        TokenProbes(4, 3, "tree")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="plans = 1"):
        TokenProbes(4, 1)


def test_cross_fitted_predictions_never_see_their_own_target() -> None:
    torch.manual_seed(0)
    features, targets = torch.randn(40, 3), torch.randn(40, 2)
    before = cross_fitted(features, targets)
    changed = targets.clone()
    changed[7] += 100
    after = cross_fitted(features, changed)
    assert torch.equal(before[7], after[7])
    assert not torch.equal(before, after)
    linear = features @ torch.randn(3, 2)
    assert rank_correlation(cross_fitted(features, linear)[:, 0], linear[:, 0]) > 0.95


def test_a_predictor_that_knows_the_scores_is_no_worse_than_shuffled() -> None:
    torch.manual_seed(0)
    scores = torch.rand(30, 3)
    rows = predictor_curve(scores, scores, COSTS)
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)
    assert rows[-1]["score"] == pytest.approx(scores.max(dim=1).values.mean().item())
    assert all(row["score"] >= row["random"] for row in rows)
    assert rows[0]["cost"] < rows[-1]["cost"]
    assert rank_correlation(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) == 0


def test_the_report_sets_prompts_apart_on_which_the_full_model_scores_nothing() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.7, 0.5], [0.1, 0.2, 0.4], [0.3, 0.6, 0.6]])
    report = oracle_report(scores, [1, 3, 4], oracle="each")
    assert report["layers"] == (1 + 1 + 4 + 3) / 4
    assert report["layers_fraction"] == report["layers"] / 4
    assert report["shares"] == [0.5, 0.25, 0.25]
    assert report["full_scores_zero"] == 0.25
    assert report["where_full_scores"] == {"prompts": 3, "layers": 8 / 3, "layers_fraction": 2 / 3}
    assert report["score"] == pytest.approx((0 + 0.5 + 0.4 + 0.6) / 4)
    assert report["score"] == judge(torch.tensor([0, 0, 2, 1]), scores, COSTS)["score"]
    assert oracle_report(torch.zeros(2, 2), [1, 2])["where_full_scores"] is None
