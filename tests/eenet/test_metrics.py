"""Metrics against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from eenet.metrics import NUM_BINS, STATISTICS, Records, sample_statistics, summarise

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
