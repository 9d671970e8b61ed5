"""Metrics against scikit-learn and torchmetrics."""

from itertools import permutations
from random import Random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from eenet.metrics import (
    NUM_BINS,
    STATISTICS,
    Records,
    area_under_risk_coverage,
    class_figures,
    equal_mass_calibration_error,
    failure_auroc,
    per_class,
    sample_statistics,
    summarise,
)

SAMPLES, EXITS, CLASSES = 500, 3, 4


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(SAMPLES, EXITS, CLASSES)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(CLASSES, (SAMPLES,))


def test_metrics_of_every_exit_against_scikit_learn(logits: torch.Tensor, labels: torch.Tensor) -> None:
    statistics = sample_statistics(logits, labels)
    assert statistics.shape == (SAMPLES, EXITS, len(STATISTICS))
    for exit in range(EXITS):
        p = logits[:, exit].softmax(-1).double()
        p = (p / p.sum(1, keepdim=True)).numpy()
        found = summarise(statistics[:, exit])
        assert found["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)))
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))
        assert found["macro_f1"] == pytest.approx(f1_score(labels, p.argmax(1), average="macro"))
        assert found["nll"] == pytest.approx(log_loss(labels, p), rel=1e-5)
        one_hot = np.eye(CLASSES)[labels]
        brier = sum(brier_score_loss(one_hot[:, c], p[:, c]) for c in range(CLASSES))
        assert found["brier"] == pytest.approx(brier, rel=1e-5)
        expected = multiclass_calibration_error(logits[:, exit], labels, CLASSES, n_bins=NUM_BINS)
        assert found["ece"] == pytest.approx(expected.item(), abs=1e-6)


def test_reliability_bins_against_scikit_learn(logits: torch.Tensor, labels: torch.Tensor) -> None:
    statistics = sample_statistics(logits[:, 0], labels)
    bins = summarise(statistics)["bins"]
    accuracy, confidence = calibration_curve(statistics[:, 1], statistics[:, 0], n_bins=NUM_BINS)
    assert bins["accuracy"] == pytest.approx(accuracy.tolist())
    assert bins["confidence"] == pytest.approx(confidence.tolist(), rel=1e-5)
    gap = np.abs(accuracy - confidence) * bins["count"]
    assert summarise(statistics)["ece"] == pytest.approx(gap.sum() / SAMPLES, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=40), st.sampled_from([1, 1e-9]))
def test_the_error_is_guos_equation_over_his_bins(rows: list[tuple[int, bool]], unsure: float) -> None:
    """Sixtieths, every fourth of which is a bound; bins are `((m - 1) / M, m / M]`, 0 in the first."""
    confidence = [unsure * level / 60 for level, _ in rows]
    error = 0.0
    for m in range(1, NUM_BINS + 1):
        inside = [
            (p, right)
            for p, (_, right) in zip(confidence, rows, strict=True)
            if (m - 1) / NUM_BINS < p <= m / NUM_BINS or (m == 1 and p == 0)
        ]
        error += abs(sum(right for _, right in inside) - sum(p for p, _ in inside)) / len(rows)
    found = torch.tensor(
        [[p, right, 0, 0, right, 1] for p, (_, right) in zip(confidence, rows, strict=True)], dtype=torch.float64
    )
    assert summarise(found)["ece"] == pytest.approx(error, abs=1e-12)


def test_certain_samples_share_the_last_bin() -> None:
    """A bin of their own would give 3.4 %."""
    confidence = torch.tensor([1.0] * 60 + [0.94] * 40)
    correct = torch.tensor([1.0] * 59 + [0.0] + [1.0] * 40)
    found = summarise(torch.stack([confidence, *[correct] * 5], dim=1))
    assert found["ece"] == pytest.approx(0.014)
    assert found["bins"]["index"] == [NUM_BINS - 1]


def test_the_error_is_that_of_the_diagrams_bins(logits: torch.Tensor, labels: torch.Tensor) -> None:
    found = summarise(sample_statistics(20 * logits[:, 0], labels))
    gap = np.abs(np.subtract(found["bins"]["accuracy"], found["bins"]["confidence"]))
    assert found["ece"] == pytest.approx(np.average(gap, weights=found["bins"]["count"]), abs=1e-12)
    assert sum(found["bins"]["count"]) == SAMPLES


def test_a_perfect_and_a_hopeless_predictor() -> None:
    labels = torch.tensor([0, 1])
    perfect = summarise(sample_statistics(torch.tensor([[99.0, 0], [0, 99.0]]), labels))
    assert (perfect["accuracy"], perfect["ece"], perfect["brier"]) == pytest.approx((1, 0, 0))
    hopeless = summarise(sample_statistics(torch.tensor([[0, 99.0], [99.0, 0]]), labels))
    assert (hopeless["accuracy"], hopeless["ece"], hopeless["brier"], hopeless["nll"]) == pytest.approx((0, 1, 2, 99))


def test_records_concatenate_batches_and_reset(logits: torch.Tensor, labels: torch.Tensor) -> None:
    records = Records(["statistics"])
    statistics = sample_statistics(logits, labels)
    for rows in statistics.split(64):
        records.update(statistics=rows)
    torch.testing.assert_close(records.compute()["statistics"], statistics)
    records.reset()
    records.update(statistics=statistics[:5])
    assert len(records.compute()["statistics"]) == 5


@pytest.mark.parametrize("samples", [15, 150, 1500])
def test_equal_mass_error_against_scikit_learn(samples: int) -> None:
    confidence = torch.rand(samples, dtype=torch.float64)
    correct = (torch.rand(samples) < confidence**2).long()
    accuracy, mean = calibration_curve(correct, confidence, n_bins=NUM_BINS, strategy="quantile")
    expected = np.abs(accuracy - mean).mean()
    assert equal_mass_calibration_error(confidence, correct).item() == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60), st.randoms())
def test_tied_samples_share_a_bin_and_a_mean_error(rows: list[tuple[int, bool]], random: Random) -> None:
    """Loops over samples sorted by confidence; the order in which samples come makes no difference."""
    n = len(rows)
    values = sorted(level for level, _ in rows)
    bins: dict[int, float] = {}
    for level, right in rows:
        number = values.index(level) * NUM_BINS // n
        bins[number] = bins.get(number, 0) + level / 20 - right
    best_first = sorted(rows, reverse=True)
    shared = [np.mean([not right for other, right in rows if other == level]) for level, _ in best_first]
    risks = [np.mean(shared[:k]) for k in range(1, n + 1)]
    for _ in range(2):
        random.shuffle(rows)
        confidence = torch.tensor([level / 20 for level, _ in rows], dtype=torch.float64)
        correct = torch.tensor([right for _, right in rows]).float()
        found = equal_mass_calibration_error(confidence, correct).item()
        assert found == pytest.approx(sum(map(abs, bins.values())) / n, abs=1e-9)
        assert area_under_risk_coverage(confidence, correct).item() == pytest.approx(np.mean(risks))


def test_aurc_is_the_mean_over_the_orders_of_ties() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.2])
    errors = np.array([0, 1, 0, 1, 0])
    orders = [[0, *middle, 4] for middle in permutations([1, 2, 3])]
    expected = np.mean([errors[order].cumsum() / np.arange(1, 6) for order in orders])
    assert area_under_risk_coverage(confidence, torch.from_numpy(1 - errors)).item() == pytest.approx(expected)


def test_aurc_of_perfect_useless_and_reversed_confidence() -> None:
    n, wrong = 40, 10
    correct = (torch.arange(n) >= wrong).long()
    k = np.arange(1, n + 1)
    rising = torch.linspace(0, 1, n)
    assert area_under_risk_coverage(rising, correct).item() == pytest.approx(np.maximum(0, k - 30).dot(1 / k) / n)
    assert area_under_risk_coverage(-rising, correct).item() == pytest.approx(np.minimum(k, 10).dot(1 / k) / n)
    assert area_under_risk_coverage(torch.ones(n), correct).item() == pytest.approx(wrong / n)


def test_summaries_hold_the_new_metrics(logits: torch.Tensor, labels: torch.Tensor) -> None:
    statistics = sample_statistics(logits[:, 0], labels)
    found = summarise(statistics)
    assert found["ece_mass"] == equal_mass_calibration_error(statistics[:, 0], statistics[:, 1])
    assert found["aurc"] == area_under_risk_coverage(statistics[:, 0], statistics[:, 1])


def test_per_class_against_scikit_learn(logits: torch.Tensor, labels: torch.Tensor) -> None:
    predictions = logits[:, 0].argmax(-1)
    found = per_class(predictions == labels, labels, CLASSES + 1)
    _, recall, _, support = precision_recall_fscore_support(labels, predictions)
    assert found["support"] == [*support, 0]
    assert found["accuracy"] == [*map(pytest.approx, recall), None]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_classes_that_are_not_there_count_as_in_scikit_learn(rows: list[tuple[int, int]]) -> None:
    predictions, labels = torch.tensor(rows).T
    found = class_figures(predictions, labels)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))


def test_accuracy_that_finds_no_positive_is_told_from_one_that_does() -> None:
    labels = (torch.arange(1000) < 11).long()
    blind = summarise(sample_statistics(torch.tensor([[9.0, 0.0]]).expand(1000, 2), labels))
    assert blind["accuracy"] == pytest.approx(0.989)
    assert blind["balanced_accuracy"] == 0.5
    assert blind["macro_f1"] == pytest.approx(0.989 / 1.989)


def test_predictions_and_labels_of_a_vocabulary_are_exact() -> None:
    labels = torch.tensor([128_255, 49_151])
    logits = torch.zeros(2, 128_256).scatter(1, labels.unsqueeze(1), 5.0)
    statistics = sample_statistics(logits, labels)
    assert statistics[:, 4].tolist() == statistics[:, 5].tolist() == labels.tolist()
    assert summarise(statistics)["macro_f1"] == 1


def test_early_exits_say_how_well_they_foresee_the_last_ones_disagreement() -> None:
    statistics = sample_statistics(torch.randn(300, 3, 4), torch.randint(4, (300,)))
    statistics[:, 0, 0] = statistics[:, 0, 0].round(decimals=1)  # ties count half
    for exit in range(2):
        disagrees = statistics[:, exit, 4] != statistics[:, 2, 4]
        sure = statistics[:, exit, 0]
        pairs = (sure[~disagrees][:, None] > sure[disagrees]).double()
        pairs += (sure[~disagrees][:, None] == sure[disagrees]).double() / 2
        assert failure_auroc(statistics[:, exit], statistics[:, 2]) == pytest.approx(pairs.mean().item())
    assert failure_auroc(statistics[:, 2], statistics[:, 2]) is None
