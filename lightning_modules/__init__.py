"""Routines: one file per way of training an early-exit network, imported when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.backbone import BackboneTraining
    from lightning_modules.decoder import DecoderJointExits, DecoderRoutine, DecoderThresholds
    from lightning_modules.decoupled import DecoupledExits
    from lightning_modules.gating import GateTraining
    from lightning_modules.joint import JointExits
    from lightning_modules.quee import QuEE
    from lightning_modules.routine import ExitRoutine
    from lightning_modules.tuning import PlanTuning
    from lightning_modules.weighted import WeightedExits

_HOMES = {
    "BackboneTraining": "backbone",
    "DecoderJointExits": "decoder",
    "DecoderRoutine": "decoder",
    "DecoderThresholds": "decoder",
    "DecoupledExits": "decoupled",
    "ExitRoutine": "routine",
    "GateTraining": "gating",
    "JointExits": "joint",
    "PlanTuning": "tuning",
    "QuEE": "quee",
    "WeightedExits": "weighted",
}

__all__ = [
    "BackboneTraining",
    "DecoderJointExits",
    "DecoderRoutine",
    "DecoderThresholds",
    "DecoupledExits",
    "ExitRoutine",
    "GateTraining",
    "JointExits",
    "PlanTuning",
    "QuEE",
    "WeightedExits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
