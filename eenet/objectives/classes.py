"""Weights of classes in a loss, for data in which some are rare."""

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

from eenet.errors import UserError

ClassWeights = Literal["none", "balanced"] | list[float]
"""All classes alike, rare ones as heavy as frequent ones, or a weight for each."""


def check_class_weights(weights: Any, num_classes: int) -> ClassWeights:
    """The weights, if they can be used; from Python they may be any numbers in a row, as a tensor's.

    Raises:
        UserError: An unknown word, or no row of one finite positive number for each class.

    Example:
        >>> check_class_weights("balanced", 10), check_class_weights(torch.tensor([1, 20]), 2)
        ('balanced', [1.0, 20.0])
    """
    field = "model.class_weights"
    if isinstance(weights, str):
        if weights not in ("none", "balanced"):
            raise UserError(field, weights, "must be none, balanced, or a list of a weight for each class")
        return cast(ClassWeights, weights)
    try:
        weights = [float(weight) for weight in weights]
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(field, weights, "must be none, balanced, or a list of a number for each class") from error
    if len(weights) != num_classes:
        raise UserError(field, weights, f"has {len(weights)} weights and the backbone {num_classes} classes")
    for weight in weights:
        if not 0 < weight < math.inf:
            raise UserError(field, weight, "each weight must be a finite number above 0")
    return weights


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Inverse frequencies, `n / (C n_c)`: every class weighs as much in all, and a sample 1 on average.

    King and Zeng, "Logistic Regression in Rare Events Data", 2001; scikit-learn's `balanced`.

    Args:
        labels: Of the training samples, `(samples,)`; each class has some.
        num_classes: The number `C` of classes.

    Returns:
        `(classes,)`.

    Example:
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    return len(labels) / (num_classes * labels.bincount(minlength=num_classes)).float()


def batch_mean(losses: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean over a batch, in which each sample weighs as its class does.

    The weighted mean of torch's `cross_entropy(weight=...)`: divided by the sum of the samples' weights.

    Args:
        losses: `(batch, ...)`.
        labels: `(batch,)`.
        class_weights: `(classes,)`; `None` for all alike.

    Returns:
        `(...)`.

    Example:
        >>> batch_mean(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
        tensor(1.7500)
    """
    if class_weights is None:
        return losses.mean(0)
    weights = class_weights.to(losses)[labels]
    return torch.tensordot(weights / weights.sum(), losses, dims=1)
