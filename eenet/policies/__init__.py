"""Policies turn gates into an exit distribution (soft, for training) and an exit decision (hard, for inference)."""

from eenet.policies.base import Memory, Policy
from eenet.policies.fixed import FixedExit
from eenet.policies.sequential import SequentialGates, conditional_exit_probabilities, exit_distribution
from eenet.policies.threshold import Threshold

__all__ = [
    "FixedExit",
    "Memory",
    "Policy",
    "SequentialGates",
    "Threshold",
    "conditional_exit_probabilities",
    "exit_distribution",
]
