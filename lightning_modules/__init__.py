"""Routines: one file per way of training an early-exit network, imported when it is asked for."""

from typing import TYPE_CHECKING

from eenet.late import lazily

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
__getattr__ = lazily(__name__)
