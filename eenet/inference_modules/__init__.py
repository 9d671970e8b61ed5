"""Inference modules: the heads that read a stage's features and classify at an exit."""

from eenet.inference_modules.base import InferenceModule, run_inference_modules
from eenet.inference_modules.heads import ConvPoolHead, LinearHead, MLPHead
from eenet.inference_modules.language import LanguageHead, OwnHead, TiedHead

__all__ = [
    "ConvPoolHead",
    "InferenceModule",
    "LanguageHead",
    "LinearHead",
    "MLPHead",
    "OwnHead",
    "TiedHead",
    "run_inference_modules",
]
