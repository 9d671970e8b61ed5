"""Objectives: pure functions from logits, labels and exit probabilities to losses and gate targets."""

from eenet.objectives.boosting import boost
from eenet.objectives.classes import ClassWeights, balanced_weights, check_class_weights
from eenet.objectives.gates import GateObjective, best_exits, gate_loss, gate_targets, positive_weights
from eenet.objectives.gradients import fork
from eenet.objectives.losses import cross_entropies, exit_weighted_loss, warmup_weights, weighted_sum_loss
from eenet.objectives.supervision import (
    DeepSupervision,
    SelfDistillation,
    Supervision,
    distillation_losses,
    linear_weights,
)
from eenet.objectives.weighting import (
    WeightNetwork,
    assign_exits,
    assigned_loss,
    centred_weights,
    geometric_shares,
)

__all__ = [
    "ClassWeights",
    "DeepSupervision",
    "GateObjective",
    "SelfDistillation",
    "Supervision",
    "WeightNetwork",
    "assign_exits",
    "assigned_loss",
    "balanced_weights",
    "best_exits",
    "boost",
    "centred_weights",
    "check_class_weights",
    "cross_entropies",
    "distillation_losses",
    "exit_weighted_loss",
    "fork",
    "gate_loss",
    "gate_targets",
    "geometric_shares",
    "linear_weights",
    "positive_weights",
    "warmup_weights",
    "weighted_sum_loss",
]
