"""Accuracy, F1, NLL, calibration errors, Brier score and AURC from a few numbers per sample and exit.

Those of `STATISTICS` are enough for the metrics of every exit and of every policy, so a validation set is run once
and any number of thresholds can be judged on it without its logits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

STATISTICS = ("confidence", "correct", "nll", "brier", "prediction", "label")
"""Columns of `sample_statistics`."""

NUM_BINS = 15
"""Confidence bins of the expected calibration errors."""


def sample_statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """Confidence, correctness, negative log-likelihood (nats), Brier score and classes of every prediction.

    Args:
        logits: `(batch, ..., classes)`.
        labels: `(batch,)`.

    Returns:
        `(batch, ..., 6)`, columns as in `STATISTICS`, float32. The Brier score is the squared distance of the
        probabilities from the one-hot label, from 0 to 2; the numbers of the predicted and the true class are exact up
        to 2^24 classes.

    Example:
        >>> sample_statistics(torch.zeros(1, 2), torch.tensor([0])).tolist()  # doctest: +ELLIPSIS
        [[0.5, 1.0, 0.693..., 0.5, 0.0, 0.0]]
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    p = log_p.exp()
    index = labels.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
    true_log_p = log_p.gather(-1, index).squeeze(-1)
    confidence, prediction = p.max(-1)
    correct = (prediction == index.squeeze(-1)).float()
    brier = p.square().sum(-1) - 2 * true_log_p.exp() + 1
    label = index.squeeze(-1).float()
    return torch.stack([confidence, correct, -true_log_p, brier, prediction.float(), label], dim=-1)


def summarise(statistics: Tensor) -> dict[str, Any]:
    """Metrics of one predictor over a data set.

    Args:
        statistics: Rows of `sample_statistics`, `(samples, 6)`.

    Returns:
        `accuracy`, `balanced_accuracy` and `macro_f1` (see `class_figures`), `nll` in nats,
        `ece` over 15 equal-width bins (Guo et al. 2017, equation 3), `ece_mass` over 15
        bins of equally many samples, `brier`, `aurc` (area under the risk-coverage curve), and `bins`: the `count` of
        samples, the mean `confidence` and the `accuracy` of each non-empty equal-width bin, with its number in `index`.
    """
    confidence, correct, nll, brier, prediction, label = statistics.T.contiguous()
    bins = reliability_bins(confidence, correct)
    return {
        "accuracy": correct.double().mean().item(),
        **class_figures(prediction.long(), label.long()),
        "nll": nll.double().mean().item(),
        "ece": calibration_error(bins),
        "ece_mass": equal_mass_calibration_error(confidence, correct).item(),
        "brier": brier.double().mean().item(),
        "aurc": area_under_risk_coverage(confidence, correct).item(),
        "bins": bins,
    }


def class_figures(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures in which every class counts alike, however rare.

    As scikit-learn's `balanced_accuracy_score` and `f1_score(average="macro")`, of as many classes as a vocabulary has.

    Args:
        predictions: `(samples,)`.
        labels: `(samples,)`.

    Returns:
        `balanced_accuracy`, the mean over classes of the share of their samples that is found (Brodersen et al. 2010);
        classes without samples are left out. `macro_f1`, the mean over classes of `2 TP / (2 TP + FP + FN)`; classes
        that are neither there nor predicted are left out.

    Example:
        >>> class_figures(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))  # doctest: +ELLIPSIS
        {'balanced_accuracy': 0.5, 'macro_f1': 0.428...}
    """
    classes = int(torch.maximum(predictions, labels).max()) + 1
    hits = predictions == labels
    found, there, predicted = (
        torch.bincount(rows, minlength=classes).double() for rows in (labels[hits], labels, predictions)
    )
    recall, f1 = found / there, 2 * found / (there + predicted)
    return {"balanced_accuracy": recall.nanmean().item(), "macro_f1": f1.nanmean().item()}


def reliability_bins(confidence: Tensor, correct: Tensor) -> dict[str, list]:
    """The non-empty bins of a reliability diagram.

    Bin `m` of `M`, counted from 1, is `((m - 1) / M, m / M]` (Guo et al. 2017, section 2), so that confidence 1 belongs
    to the last; a confidence of 0, which the maximum of a softmax cannot be, belongs to the first. Bounds are float64.

    Args:
        confidence: `(samples,)`.
        correct: 0 or 1, `(samples,)`.

    Returns:
        `index`, `count`, `confidence` and `accuracy` of each bin that has samples.
    """
    bounds = torch.arange(1, NUM_BINS, dtype=torch.float64, device=confidence.device) / NUM_BINS
    bins = torch.bucketize(confidence.double(), bounds)
    count = torch.bincount(bins, minlength=NUM_BINS)
    filled = count.nonzero().squeeze(1)
    sums = [torch.bincount(bins, weights=values.double(), minlength=NUM_BINS) for values in (confidence, correct)]
    means = [(total[filled] / count[filled]).tolist() for total in sums]
    return {"index": filled.tolist(), "count": count[filled].tolist(), "confidence": means[0], "accuracy": means[1]}


def calibration_error(bins: Mapping[str, Sequence]) -> float:
    """Expected calibration error of the bins of a diagram (Guo et al. 2017, equation 3).

    Args:
        bins: From `reliability_bins`.

    Example:
        >>> calibration_error({"count": [1, 3], "confidence": [0.5, 1.0], "accuracy": [0.0, 1.0]})
        0.125
    """
    gaps = zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True)
    return sum(count * abs(accuracy - confidence) for count, confidence, accuracy in gaps) / sum(bins["count"])


def equal_mass_calibration_error(confidence: Tensor, correct: Tensor) -> Tensor:
    """Expected calibration error over bins of equally many samples (Nixon et al. 2019, section 3).

    Equal confidences share the bin of the first of them, so the order of samples does not matter.

    Args:
        confidence: `(samples,)`.
        correct: 0 or 1, `(samples,)`.

    Returns:
        A scalar: the mean over samples of their bin's distance between mean confidence and accuracy.

    Example:
        >>> equal_mass_calibration_error(torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([1, 0, 1, 1]))
        tensor(0.2500, dtype=torch.float64)
    """
    _, tie, count = confidence.unique(return_inverse=True, return_counts=True)
    bins = ((count.cumsum(0) - count) * NUM_BINS // len(confidence))[tie]
    gaps = torch.bincount(bins, weights=confidence.double() - correct.double(), minlength=NUM_BINS)
    return gaps.abs().sum() / len(confidence)


def area_under_risk_coverage(confidence: Tensor, correct: Tensor) -> Tensor:
    """Mean, over the coverages `k / n`, of the error among the `k` most confident samples (Geifman et al. 2019).

    Samples of equal confidence count with their mean error: the expectation over their order.

    Args:
        confidence: `(samples,)`.
        correct: 0 or 1, `(samples,)`.

    Returns:
        A scalar; lower is better, and the error rate if confidence says nothing.

    Example:
        >>> area_under_risk_coverage(torch.tensor([0.9, 0.6, 0.7, 0.8]), torch.tensor([1, 0, 1, 1]))
        tensor(0.0625, dtype=torch.float64)
    """
    _, tie, count = (-confidence).unique(return_inverse=True, return_counts=True)
    errors = torch.bincount(tie, weights=1 - correct.double()) / count
    expected = errors.repeat_interleave(count)
    return (expected.cumsum(0) / torch.arange(1, len(expected) + 1, device=expected.device)).mean()


def choice_shares(choice: Tensor, options: int) -> Tensor:
    """Share of the samples with each of some options, such as exits or plans, float64 `(options,)`.

    Example:
        >>> choice_shares(torch.tensor([0, 2, 2, 2]), 3).tolist()
        [0.25, 0.0, 0.75]
    """
    return torch.bincount(choice, minlength=options).double() / len(choice)


def per_class(correct: Tensor, labels: Tensor, num_classes: int) -> dict[str, list]:
    """Accuracy of each class, as plain values.

    Args:
        correct: 0 or 1, `(samples,)`.
        labels: `(samples,)`.
        num_classes: Of the data.

    Returns:
        `support`, the number of samples of each class, and `accuracy`, `None` where there are none.

    Example:
        >>> per_class(torch.tensor([1, 0, 1]), torch.tensor([0, 0, 2]), num_classes=3)
        {'support': [2, 0, 1], 'accuracy': [0.5, None, 1.0]}
    """
    support = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels, weights=correct.double(), minlength=num_classes)
    accuracy = [share if count else None for share, count in zip((right / support).tolist(), support, strict=True)]
    return {"support": support.tolist(), "accuracy": accuracy}


def auroc(scores: Tensor, happened: Tensor) -> float | None:
    """Area under the ROC curve, from the order of the scores alone.

    Args:
        scores: Higher where it is likelier to happen, on any scale, `(samples,)`: logits, as a sigmoid in float32 makes
            different scores equal. Of equal ones each pair counts half.
        happened: 0 or 1, `(samples,)`.

    Returns:
        `None` if everything or nothing happened, or a score is NaN, which has no place in an order.

    Example:
        >>> auroc(torch.tensor([0.1, 0.4]), torch.tensor([0.0, 1.0]))
        1.0
    """
    happened = happened.double()
    count = happened.sum().item()
    if scores.isnan().any() or not 0 < count < len(happened):
        return None
    _, places, equals = scores.unique(return_inverse=True, return_counts=True)
    ranks = (equals.cumsum(0) - (equals - 1) / 2)[places].double()
    return (ranks @ happened / count - (count + 1) / 2).item() / (len(happened) - count)


def failure_auroc(statistics: Tensor, last: Tensor) -> float | None:
    """How well an exit's confidence tells where the full network will disagree (arXiv 2508.21495).

    Args:
        statistics: Of the exit, `(samples, 6)`.
        last: Of the full network.

    Returns:
        The area under the ROC curve of minus the confidence; `None` if they agree everywhere or nowhere.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> statistics = sample_statistics(logits, torch.tensor([0, 1]))
        >>> failure_auroc(statistics[:, 0], statistics[:, 1])
        1.0
    """
    confidence, prediction = (STATISTICS.index(name) for name in ("confidence", "prediction"))
    return auroc(-statistics[:, confidence], (statistics[:, prediction] != last[:, prediction]).double())
