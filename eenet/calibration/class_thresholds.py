"""Offsets of per-class thresholds: classes that are told apart more clearly leave earlier."""

import torch
from torch import Tensor

from eenet.calibration.logits import Logits, blocks

WIDTHS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Distances of the highest from the lowest threshold that are compared; at 0 all classes share one."""


def class_offsets(logits: Logits, labels: Tensor) -> Tensor:
    """From 0 for the class whose mean probabilities are clearest to 1 for the one where they are least.

    Class-based thresholding (Görmez and Koyuncu, arXiv 2210.15621): the clearness of a class is the largest less the
    second largest of its samples' mean probabilities, over all exits; that of a class without samples is least. How the
    range of the thresholds is found, by validation accuracy among `WIDTHS`, is ours. [inferred]

    Args:
        logits: `(samples, exits, classes)`.
        labels: `(samples,)`.

    Returns:
        Float64 `(classes,)`.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 9.0]]])
        >>> class_offsets(logits, torch.tensor([0, 1, 2])).round(decimals=2).tolist()
        [0.0, 1.0, 0.0]
    """
    classes = logits.shape[2]
    means = torch.zeros(classes, classes, dtype=torch.float64)
    for rows, block in blocks(logits):
        means.index_add_(0, labels[rows].cpu(), block.double().softmax(-1).mean(1).cpu())
    counts = labels.cpu().bincount(minlength=classes).clamp_min(1)
    top = (means / counts.unsqueeze(1)).topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1]
    return (clear.max() - clear) / (clear.max() - clear.min()).clamp_min(1e-12)
