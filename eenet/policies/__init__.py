"""Policies turn gates into an exit distribution (soft, for training) and an exit decision (hard, for inference)."""

from eenet.policies.base import Policy
from eenet.policies.best_way import BestWay
from eenet.policies.class_thresholds import ClassThresholds
from eenet.policies.fixed import FixedExit
from eenet.policies.patience import Patience
from eenet.policies.predicted_errors import PredictedErrors
from eenet.policies.random import RandomExits
from eenet.policies.sequential import SequentialGates, exit_distribution
from eenet.policies.threshold import Threshold

__all__ = [
    "BestWay",
    "ClassThresholds",
    "FixedExit",
    "Patience",
    "Policy",
    "PredictedErrors",
    "RandomExits",
    "SequentialGates",
    "Threshold",
    "exit_distribution",
]
