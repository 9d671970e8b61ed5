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
from eenet.quantization.predictors import (
    FOLDS,
    Stacked,
    Targets,
    brier,
    cluster_rates,
    cluster_targets,
    deal_folds,
    description,
)
from eenet.quantization.quality import clairvoyant, rescue
from eenet.tree import Tree

RATES = torch.tensor([[0.02, 0.05, 0.3], [0.9, 0.1, 0.2], [0.5, 0.6, 0.05], [0.1, 0.9, 0.8]])
"""Error rates of three paths in four groups of samples."""


def known_of(logits: Tensor, features: Tensor) -> Known:
    return Known(uncertainty_statistics(logits), features, logits.log_softmax(-1))


def make_samples(count: int) -> tuple[Known, Tensor, Tensor]:
    """Samples whose features tell their group, whose logits tell nothing; their errors and their true rates."""
    groups = torch.randint(0, 4, (count,))
    centers = torch.eye(4, 12) * 6
    known = known_of(torch.randn(count, 5), centers[groups] + 0.5 * torch.randn(count, 12))
    return known, torch.bernoulli(RATES[groups]), RATES[groups]


@pytest.mark.parametrize("targets", ["mixed", "kmeans"])
def test_predictors_recover_the_error_rates_of_groups(targets: Targets) -> None:
    torch.manual_seed(0)
    (known, errors, soft), predictor = make_samples(600), ErrorPredictor([12], 5, 3)
    fitted = fit_predictor(predictor, known, errors, soft, targets)
    assert (fitted.clusters == 0) if targets == "mixed" else (4 <= fitted.clusters <= 16)
    seen_before, rates_before = fitted.unseen, soft
    known, errors, rates = make_samples(2000)
    with torch.no_grad():
        predicted = predictor(known).sigmoid()
    constant = errors.mean(0).expand_as(errors)
    simple = SimplePredictors(3)
    simple.fit(known, errors)
    best_possible = brier(rates, errors)
    assert best_possible <= brier(predicted, errors) < best_possible + 0.02
    assert brier(predicted, errors) < min(brier(constant, errors), brier(simple.confidence(known), errors)) - 0.05
    # Of the samples that it was fitted to, too, it says the rates and not what happened to them.
    assert (seen_before - rates_before).abs().mean() < 0.1
    for path in range(3):
        area = auroc(predicted[:, path], errors[:, path])
        assert area is not None
        assert area > 0.7


def test_predictions_of_the_folds_do_not_know_the_errors_of_their_samples() -> None:
    """Errors that nothing foretells: whoever has seen them predicts them, whoever has not is at one half."""
    torch.manual_seed(0)
    known = known_of(torch.randn(300, 5), torch.randn(300, 40))
    errors = torch.bernoulli(torch.full((300, 1), 0.5))
    fitted = fit_predictor(ErrorPredictor([40], 5, 1), known, errors, errors)
    area = auroc(fitted.unseen[:, 0], errors[:, 0])
    assert area is not None
    assert abs(area - 0.5) < 0.12
    assert fitted.steps <= 20


def test_soft_targets_change_what_is_learned() -> None:
    (known, errors, _), predictor = make_samples(200), ErrorPredictor([12], 5, 3)
    with torch.no_grad():
        low = fit_predictor(predictor, known, errors, torch.zeros_like(errors)).unseen.mean()
        high = fit_predictor(predictor, known, errors, torch.ones_like(errors)).unseen.mean()
    assert high > low + 0.1


def test_folds_are_even_and_cover_everybody() -> None:
    folds = deal_folds(103)
    assert sorted(folds.bincount().tolist()) == [20, 20, 21, 21, 21]
    assert folds.max() == FOLDS - 1
    assert not torch.equal(folds, torch.arange(103) % FOLDS)


def test_stacked_copies_are_the_perceptron() -> None:
    predictor, rows = ErrorPredictor([6], 4, 2), torch.randn(9, 6 + 4 + 4 + 4)
    stacked = Stacked(predictor.layers, 3)
    wanted = predictor.layers(rows)
    for found in stacked(rows):
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        stacked.weights[0][1] += 1
    changed = stacked(rows)[1]
    stacked.unstack(predictor.layers, 1)
    torch.testing.assert_close(predictor.layers(rows), changed)


def test_every_exit_passed_is_read() -> None:
    first, second = known_of(torch.randn(8, 5), torch.randn(8, 3)), known_of(torch.randn(8, 5), torch.randn(8, 7))
    second = second._replace(passed=(first.row,))
    predictor = ErrorPredictor([3, 7], 5, 2)
    read = predictor.read(second)
    assert read.shape == (8, 2 * (4 + 5 + 5) + 3 + 7 + 1)
    for part in (first.statistics, first.features, second.log_probabilities, second.features):
        assert any(torch.equal(read[:, i : i + part.shape[1]], part) for i in range(read.shape[1]))
    said = [found.log_probabilities.argmax(1) for found in (first, second)]
    assert read[:, -1].tolist() == (said[0] == said[1]).float().tolist()
    predictor.fit_description(second)
    described = predictor.describe(second)
    wanted = (read - read.mean(0)) / read.std(0, correction=0)
    torch.testing.assert_close(described, wanted.nan_to_num().clamp(-6, 6), atol=1e-4, rtol=1e-4)
    one = second.take([3])
    torch.testing.assert_close(predictor(one), predictor(second)[3:4])


def test_fitting_twice_gives_the_same_predictor_and_leaves_the_random_state_alone() -> None:
    (known, errors, soft), (first, second) = make_samples(60), (ErrorPredictor([12], 5, 3), ErrorPredictor([12], 5, 3))
    for predictor in (first, second):
        fit_predictor(predictor, known, errors, soft)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    before = torch.random.get_rng_state()
    fit_predictor(second, known, errors, soft)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_rescue_is_the_area_under_the_gain_that_is_predicted() -> None:
    tree = Tree.of([(8, 8), (8, 4)])
    errors = torch.bernoulli(torch.full((400, 3), 0.4))
    gain = torch.rand(400)
    saved = (errors[:, 1] == 0) & (errors[:, 2] == 1)
    predicted = torch.stack([torch.rand(400), torch.zeros(400), gain], dim=1)
    expected = roc_auc_score(saved.numpy(), gain.numpy())
    assert rescue(tree, 0, predicted, errors) == pytest.approx(expected, abs=1e-6)
    assert rescue(Tree.of([(8, 8)]), 0, predicted[:, :2], errors[:, :2]) is None


def test_the_clairvoyant_trusts_what_all_paths_say_together() -> None:
    tree = Tree.of([(8, 8), (8, 4)])
    p = torch.tensor([[[0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]])
    found = clairvoyant(tree, p.log())
    torch.testing.assert_close(found, torch.tensor([[1 - 0.35, 1 - 0.65, 1 - 0.35]]))


def test_cluster_rates_are_means() -> None:
    members = torch.randint(0, 5, (200,))
    errors = torch.bernoulli(torch.full((200, 3), 0.4))
    expected = np.stack([errors[members == cluster].numpy().mean(0) for cluster in range(5)])
    np.testing.assert_allclose(cluster_rates(members, errors, 5), expected, rtol=1e-5)


def test_without_structure_one_cluster_is_chosen_and_targets_are_the_mean_of_the_other_folds() -> None:
    points, errors = torch.randn(300, 3).double(), torch.bernoulli(torch.full((300, 2), 0.3))
    folds = deal_folds(300)
    targets = cluster_targets(points, errors, folds)
    assert targets.clusters == 1
    for fold in range(FOLDS):
        torch.testing.assert_close(targets.rates[fold], errors[folds != fold].mean(0).expand(300, 2))
    torch.testing.assert_close(targets.rates[FOLDS], errors.mean(0).expand(300, 2))


def test_equal_samples_make_one_cluster() -> None:
    same, errors = torch.zeros(40, 3).double(), torch.bernoulli(torch.full((40, 2), 0.5))
    assert cluster_targets(same, errors, deal_folds(40)).clusters == 1


def test_the_description_is_standardised_statistics_and_principal_components() -> None:
    known, _, _ = make_samples(500)
    described, statistics = description(known, components=4), known.statistics.double()
    torch.testing.assert_close(
        described[:, :4], (statistics - statistics.mean(0)) / statistics.std(0, correction=0), atol=1e-4, rtol=1e-4
    )
    covariance = described[:, 4:].T.cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    assert covariance.trace().item() == pytest.approx(4, rel=1e-3)
    _, singular, _ = np.linalg.svd(known.features.numpy() - known.features.numpy().mean(0))
    expected = singular[:4] ** 2 / (singular[:4] ** 2).sum() * 4
    np.testing.assert_allclose(covariance.diag(), expected, rtol=1e-3)
    assert description(make_samples(3)[0]).isfinite().all()


def test_simple_predictors_are_rates_and_a_rising_line() -> None:
    logits = torch.randn(2000, 5) * 3
    confident = logits.softmax(-1).amax(-1)
    errors = torch.stack([torch.bernoulli(1 - confident), torch.zeros(2000)], dim=1)
    known = known_of(logits, torch.zeros(2000, 2))
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
