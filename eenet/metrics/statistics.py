"""Accuracy, NLL, ECE and Brier score from four numbers per sample and exit.

Four numbers per sample are enough for the metrics of every exit and of every policy, so a validation set is run once
and any number of thresholds can be judged on it without its logits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

STATISTICS = ("confidence", "correct", "nll", "brier")
"""Columns of `sample_statistics`."""

NUM_BINS = 15
"""Equal-width confidence bins of the expected calibration error."""


def sample_statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """Confidence, correctness, negative log-likelihood (nats) and Brier score of every prediction.

    Args:
        logits: `(batch, ..., classes)`.
        labels: `(batch,)`.

    Returns:
        `(batch, ..., 4)`, columns as in `STATISTICS`, float32. The Brier score is the squared distance of the
        probabilities from the one-hot label, from 0 to 2.

    Example:
        >>> sample_statistics(torch.zeros(1, 2), torch.tensor([0])).tolist()  # doctest: +ELLIPSIS
        [[0.5, 1.0, 0.693..., 0.5]]
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    p = log_p.exp()
    index = labels.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
    true_log_p = log_p.gather(-1, index).squeeze(-1)
    confidence, prediction = p.max(-1)
    correct = (prediction == index.squeeze(-1)).float()
    brier = p.square().sum(-1) - 2 * true_log_p.exp() + 1
    return torch.stack([confidence, correct, -true_log_p, brier], dim=-1)


def summarise(statistics: Tensor) -> dict[str, Any]:
    """Metrics of one predictor over a data set.

    Args:
        statistics: Rows of `sample_statistics`, `(samples, 4)`.

    Returns:
        `accuracy`, `nll` in nats, `ece` over 15 equal-width bins (Guo et al. 2017, equation 3), `brier`, and `bins`:
        the `count` of samples, the mean `confidence` and the `accuracy` of each non-empty confidence bin, with the
        bin's number in `index`.
    """
    confidence, correct, nll, brier = statistics.T.contiguous()
    return {
        "accuracy": correct.double().mean().item(),
        "nll": nll.double().mean().item(),
        "ece": binary_calibration_error(confidence, correct.long(), n_bins=NUM_BINS, norm="l1").item(),
        "brier": brier.double().mean().item(),
        "bins": reliability_bins(confidence, correct),
    }


def reliability_bins(confidence: Tensor, correct: Tensor) -> dict[str, list]:
    """The non-empty bins of a reliability diagram.

    Args:
        confidence: `(samples,)`.
        correct: 0 or 1, `(samples,)`.

    Returns:
        `index`, `count`, `confidence` and `accuracy` of each bin that has samples.
    """
    bins = (confidence * NUM_BINS).long().clamp_(0, NUM_BINS - 1)
    count = torch.bincount(bins, minlength=NUM_BINS)
    filled = count.nonzero().squeeze(1)
    sums = [torch.bincount(bins, weights=values.double(), minlength=NUM_BINS) for values in (confidence, correct)]
    means = [(total[filled] / count[filled]).tolist() for total in sums]
    return {"index": filled.tolist(), "count": count[filled].tolist(), "confidence": means[0], "accuracy": means[1]}
