"""Targets and loss of the gates: leave at the best exit, or earlier than it never."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.objectives.losses import cross_entropies

GateObjective = Literal["ce", "zero_one", "prob", "prob_if_right"]
"""What the best exit is best at: cross-entropy, 0/1 loss, minus the true class's probability, or that only where the
exit is right and else 0, as JEI-DNN's authors have it."""


def best_exits(
    logits: Tensor, labels: Tensor, costs: Tensor, tradeoff: float, objective: GateObjective = "ce"
) -> Tensor:
    """The exit with the least loss plus priced cost, `argmin_l [loss(f_l, y) + lambda c_l]` (JEI-DNN, section 4.3).

    Args:
        logits: All exits, `(batch, exits, classes)`.
        labels: `(batch,)`.
        costs: Cumulative cost of each exit as a fraction of the full network's, `(exits,)`.
        tradeoff: The price lambda of the full network's cost, in units of the loss.
        objective: The loss.

    Returns:
        Exit numbers, `(batch,)`; the earliest of equals.
    """
    if objective == "ce":
        losses = cross_entropies(logits, labels)
    elif objective == "zero_one":
        losses = (logits.argmax(-1) != labels.unsqueeze(1)).to(logits.dtype)
    else:
        index = labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
        losses = -logits.softmax(-1).gather(2, index).squeeze(2)
        if objective == "prob_if_right":
            losses = losses * (logits.argmax(-1) == labels.unsqueeze(1))
    return (losses + tradeoff * costs).argmin(1)


def gate_targets(best: Tensor, num_gates: int) -> Tensor:
    """Target of gate `l`: 1 if the best exit is `l` or an earlier one, else 0.

    Args:
        best: Exit numbers, `(batch,)`.
        num_gates: One per exit but the last.

    Returns:
        Float `(batch, gates)`.

    Example:
        >>> gate_targets(torch.tensor([0, 1, 2]), 2).tolist()
        [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    """
    return (best.unsqueeze(1) <= torch.arange(num_gates, device=best.device)).float()


def positive_weights(positives: Tensor, total: Tensor | int, limit: float = 5.0, least: float = 0.05) -> Tensor:
    """Weight of a gate's positive targets, `#0 / #1`, within `least` and `limit`; `limit` where there is no positive.

    It is below 1 where most targets are positive, and never 0, which would stop the gate; the paper limits it from
    above alone [inferred].

    Args:
        positives: Number of positive targets of each gate, `(gates,)`.
        total: Number of samples.
        limit: Largest weight.
        least: Smallest weight.

    Returns:
        `(gates,)`.

    Example:
        >>> positive_weights(torch.tensor([5.0, 0.0, 8.0]), 10).tolist()
        [1.0, 5.0, 0.25]
    """
    return ((total - positives) / positives).clamp(least, limit)


def gate_loss(gate_logits: Tensor, targets: Tensor, weights: Tensor, rarer: bool = False) -> Tensor:
    """Binary cross-entropy with a positive weight per gate, the mean over samples and gates (JEI-DNN, section 4.3).

    Args:
        gate_logits: `(batch, gates)`.
        targets: `(batch, gates)`.
        weights: Positive weights, `(gates,)`.
        rarer: Where a weight is below 1, weigh the negative targets by its inverse instead: the same balance, from
            steps that do not get smaller as the targets agree. [inferred]

    Returns:
        A scalar.

    Example:
        >>> loss = gate_loss(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.05]), rarer=True)
        >>> round(loss.item(), 3)
        0.693
    """
    scale = 1 / weights.clamp(max=1) if rarer else None
    return F.binary_cross_entropy_with_logits(gate_logits, targets, scale, pos_weight=weights)
