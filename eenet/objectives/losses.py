"""Losses of the inference modules."""

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.objectives.classes import batch_mean


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every exit.

    Args:
        logits: `(batch, exits, classes)`.
        labels: `(batch,)`.

    Returns:
        `(batch, exits)`, in nats.
    """
    batch, exits, _ = logits.shape
    repeated = labels.unsqueeze(1).expand(batch, exits).flatten()
    return F.cross_entropy(logits.flatten(0, 1), repeated, reduction="none").view(batch, exits)


def weighted_sum_loss(logits: Tensor, labels: Tensor, weights: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Deep supervision: the weighted sum over exits of the mean cross-entropy.

    Args:
        logits: `(batch, exits, classes)`.
        labels: `(batch,)`.
        weights: One per exit, `(exits,)`.
        class_weights: One per class, `(classes,)`, for the mean over the batch; `None` for all alike.

    Returns:
        A scalar.
    """
    return batch_mean(cross_entropies(logits, labels), labels, class_weights) @ weights


def warmup_weights(exits: int) -> Tensor:
    """Weights `L - l` of the early exits `l = 0 .. L - 2` of `L`, earlier exits heavier, `(exits - 1,)`.

    Those of JEI-DNN's warm-up, whose steps grow with the number of exits; where there are more than six, they are
    scaled to 6 at the first [inferred].

    Example:
        >>> warmup_weights(3).tolist()
        [3.0, 2.0]
    """
    return torch.arange(exits, 1, -1) * min(1.0, 6 / exits)


def exit_weighted_loss(
    logits: Tensor,
    labels: Tensor,
    exit_probabilities: Tensor,
    rescale: bool = True,
    class_weights: Tensor | None = None,
) -> Tensor:
    """The inference modules' objective, the mean over samples of `sum_l P_l CE(f_l, y)` (JEI-DNN, section 4.2).

    Args:
        logits: Of the exits that are trained, `(batch, exits, classes)`.
        labels: `(batch,)`.
        exit_probabilities: Of the same exits, `(batch, exits)`, taken as constants.
        rescale: Scale each sample's weights so that its weighted loss equals `sum_l CE(f_l, y)`, which keeps every
            module's gradient alive; the scale is a constant to the gradient. A sample whose weights are all zero (it
            surely leaves at an exit that is not trained) adds nothing.
        class_weights: One per class, `(classes,)`, for the mean over samples; `None` for all alike.

    Returns:
        A scalar.

    Example:
        >>> logits, labels = torch.zeros(1, 2, 2), torch.tensor([0])
        >>> exit_weighted_loss(logits, labels, torch.tensor([[0.1, 0.3]])).item()  # doctest: +ELLIPSIS
        1.386...
    """
    losses = cross_entropies(logits, labels)
    weights = exit_probabilities.detach()
    if rescale:
        values = losses.detach()
        weighted = (weights * values).sum(1, keepdim=True)
        tiny = torch.finfo(values.dtype).tiny
        weights = torch.where(weighted > tiny, weights * values.sum(1, keepdim=True) / weighted.clamp_min(tiny), 0.0)
    return batch_mean((weights * losses).sum(1), labels, class_weights)
