"""Error predictors on synthetic samples whose error rates are known."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import brier_score_loss, roc_auc_score
from torch import Tensor

from eenet.calibration.curves import Point, point_for_budget
from eenet.errors import UserError
from eenet.gates import ErrorPredictor, Known, uncertainty_statistics
from eenet.metrics import auroc
from eenet.quantization import SimplePredictors, fit_predictor
from eenet.quantization.predictors import brier, cluster_rates, cluster_targets

RATES = torch.tensor([[0.02, 0.05, 0.3], [0.9, 0.1, 0.2], [0.5, 0.6, 0.05], [0.1, 0.9, 0.8]])
"""Error rates of three paths in four groups of samples."""


def make_samples(count: int) -> tuple[Known, Tensor, Tensor]:
    """Samples whose features tell their group, whose logits tell nothing; their errors and their true rates."""
    groups = torch.randint(0, 4, (count,))
    centers = torch.eye(4, 12) * 6
    known = Known(uncertainty_statistics(torch.randn(count, 5)), centers[groups] + 0.5 * torch.randn(count, 12))
    return known, torch.bernoulli(RATES[groups]), RATES[groups]


def fitted(seed: int = 0) -> tuple[ErrorPredictor, int]:
    torch.manual_seed(seed)
    (known, errors, _), (others, other_errors, _) = make_samples(400), make_samples(400)
    predictor = ErrorPredictor(12, 3)
    targets = fit_predictor(predictor, (known, others), (errors, other_errors))
    return predictor, targets.clusters


@torch.no_grad()
def test_predictors_recover_the_error_rates_of_clusters() -> None:
    predictor, clusters = fitted()
    known, errors, rates = make_samples(2000)
    predicted = predictor(known).sigmoid()
    assert 4 <= clusters <= 16
    assert (predicted - rates).abs().mean() < 0.08
    constant = errors.mean(0).expand_as(errors)
    simple = SimplePredictors(3)
    simple.fit(known, errors)
    best_possible = brier(rates, errors)
    assert best_possible <= brier(predicted, errors) < best_possible + 0.02
    assert brier(predicted, errors) < min(brier(constant, errors), brier(simple.confidence(known), errors)) - 0.05
    for path in range(3):
        area = auroc(predicted[:, path], errors[:, path])
        assert area is not None
        assert area > 0.7


def test_fitting_twice_gives_the_same_predictor_and_leaves_the_random_state_alone() -> None:
    (known, errors, _), (first, second) = make_samples(60), (ErrorPredictor(12, 3), ErrorPredictor(12, 3))
    for predictor in (first, second):
        fit_predictor(predictor, (known, known), (errors, errors))
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    before = torch.random.get_rng_state()
    fit_predictor(second, (known, known), (errors, errors))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_cluster_rates_are_means() -> None:
    members = torch.randint(0, 5, (200,))
    errors = torch.bernoulli(torch.full((200, 3), 0.4))
    expected = np.stack([errors[members == cluster].numpy().mean(0) for cluster in range(5)])
    np.testing.assert_allclose(cluster_rates(members, errors, 5), expected, rtol=1e-5)


def test_without_structure_one_cluster_is_chosen_and_targets_are_the_mean() -> None:
    points, errors = torch.randn(300, 3), torch.bernoulli(torch.full((300, 2), 0.3))
    targets = cluster_targets((points[:150], points[150:]), (errors[:150], errors[150:]))
    assert targets.clusters == 1
    torch.testing.assert_close(targets.rates, errors[:150].mean(0).expand(150, 2))
    assert targets.brier == pytest.approx(brier(errors[:150].mean(0).expand(150, 2), errors[150:]))


def test_equal_samples_make_one_cluster() -> None:
    same, errors = torch.zeros(40, 3), torch.bernoulli(torch.full((40, 2), 0.5))
    with pytest.warns(match="distinct clusters"):
        assert cluster_targets((same, same), (errors, errors)).clusters == 1


def test_the_description_is_standardised_statistics_and_principal_components() -> None:
    known, _, _ = make_samples(500)
    predictor = ErrorPredictor(12, 3, projection=4)
    predictor.fit_description(known)
    described = predictor.describe(known)
    statistics = known.statistics
    torch.testing.assert_close(
        described[:, :4], (statistics - statistics.mean(0)) / statistics.std(0, correction=0), atol=1e-4, rtol=1e-4
    )
    covariance = described[:, 4:].T.cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    assert covariance.trace().item() == pytest.approx(4, rel=1e-3)
    _, singular, _ = np.linalg.svd(known.features.numpy() - known.features.numpy().mean(0))
    expected = singular[:4] ** 2 / (singular[:4] ** 2).sum() * 4
    np.testing.assert_allclose(covariance.diag(), expected, rtol=1e-3)


def test_fewer_samples_than_components_are_enough() -> None:
    known, _, _ = make_samples(3)
    predictor = ErrorPredictor(12, 3)
    predictor.fit_description(known)
    assert predictor.describe(known).isfinite().all()


def test_simple_predictors_are_rates_and_a_rising_line() -> None:
    logits = torch.randn(2000, 5) * 3
    confident = logits.softmax(-1).amax(-1)
    errors = torch.stack([torch.bernoulli(1 - confident), torch.zeros(2000)], dim=1)
    known = Known(uncertainty_statistics(logits), torch.zeros(2000, 2))
    simple = SimplePredictors(2)
    simple.fit(known, errors)
    torch.testing.assert_close(simple.constant(known), errors.mean(0).expand(2000, 2))
    predicted = simple.confidence(known)
    assert (predicted[:, 0] - (1 - confident)).abs().mean() < 0.1
    assert predicted[:, 1].max() < 2e-3


def test_scores_agree_with_other_libraries() -> None:
    scores, errors = torch.rand(300), torch.bernoulli(torch.full((300,), 0.3))
    assert brier(scores, errors) == pytest.approx(brier_score_loss(errors.numpy(), scores.numpy()))
    ranks = mannwhitneyu(scores[errors == 1].numpy(), scores[errors == 0].numpy()).statistic
    assert auroc(scores, errors) == pytest.approx(ranks / (errors.sum() * (1 - errors).sum()).item(), abs=1e-4)
    assert auroc(scores, torch.zeros(300)) is None
    assert auroc(torch.where(scores > 0.9, torch.inf, scores), errors) == pytest.approx(
        roc_auc_score(errors.numpy(), scores.clamp(max=0.9).numpy())
    )
    assert auroc(torch.where(scores > 0.9, torch.nan, scores), errors) is None


def test_a_budget_takes_the_best_point_that_keeps_it() -> None:
    points = [Point(8, 1.0, 0.7, 0.1), Point(8, 0.5, 0.9, 0.2), Point(4, 0.5, 0.9, 0.15), Point(32, 0.0, 0.95, 0.6)]
    assert [point_for_budget(points, budget) for budget in (0.1, 0.3, 1.0)] == [points[0], points[2], points[3]]
    with pytest.raises(UserError, match=r"budgets = 0\.05: the cheapest operating point costs 0\.1000"):
        point_for_budget(points, 0.05)
    with pytest.raises(UserError, match="above 0"):
        point_for_budget(points, 0.0)


@pytest.mark.parametrize("shift", [0, 30])
def test_area_keeps_the_order_of_certain_scores(shift: float) -> None:
    """Above 17 a sigmoid in float32 is 1; of equal scores each pair counts half."""
    scores, errors = (8 * torch.randn(200)).round() / 8 + shift, torch.rand(200) < 0.3
    ahead = scores[errors].unsqueeze(1) - scores[~errors]
    assert auroc(scores, errors.float()) == pytest.approx(((ahead > 0) + (ahead == 0) / 2).double().mean().item())
