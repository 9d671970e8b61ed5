"""Gates: how ready a sample is to leave at an exit, from what is known there."""

from eenet.gates.base import Gate, GateInput, Known, Memory
from eenet.gates.confidence import ConfidenceGate, confidence
from eenet.gates.errors import ErrorGate, ErrorPredictor
from eenet.gates.saturation import SaturationGate
from eenet.gates.scheduler import SchedulerGate
from eenet.gates.stopping import StoppingGate
from eenet.gates.stopping_tree import TreeStoppingGate
from eenet.gates.uncertainty import UncertaintyGate, known_at, uncertainty_statistics

__all__ = [
    "ConfidenceGate",
    "ErrorGate",
    "ErrorPredictor",
    "Gate",
    "GateInput",
    "Known",
    "Memory",
    "SaturationGate",
    "SchedulerGate",
    "StoppingGate",
    "TreeStoppingGate",
    "UncertaintyGate",
    "confidence",
    "known_at",
    "uncertainty_statistics",
]
