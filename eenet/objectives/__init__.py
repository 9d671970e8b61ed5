"""Objectives: pure functions from logits, labels and exit probabilities to losses and gate targets."""

from eenet.objectives.boosting import boost
from eenet.objectives.gates import GateObjective, best_exits, gate_loss, gate_targets, positive_weights
from eenet.objectives.gradients import fork, scale_gradient
from eenet.objectives.losses import cross_entropies, exit_weighted_loss, weighted_sum_loss

__all__ = [
    "GateObjective",
    "best_exits",
    "boost",
    "cross_entropies",
    "exit_weighted_loss",
    "fork",
    "gate_loss",
    "gate_targets",
    "positive_weights",
    "scale_gradient",
    "weighted_sum_loss",
]
