"""Routines: one file per way of training an early-exit network."""

from lightning_modules.backbone import BackboneTraining
from lightning_modules.decoder import DecoderJointExits, DecoderRoutine, DecoderThresholds
from lightning_modules.decoupled import DecoupledExits
from lightning_modules.joint import JointExits
from lightning_modules.quee import QuEE
from lightning_modules.routine import ExitRoutine
from lightning_modules.weighted import WeightedExits

__all__ = [
    "BackboneTraining",
    "DecoderJointExits",
    "DecoderRoutine",
    "DecoderThresholds",
    "DecoupledExits",
    "ExitRoutine",
    "JointExits",
    "QuEE",
    "WeightedExits",
]
