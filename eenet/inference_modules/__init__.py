"""Inference modules: the heads that read a stage's features and classify at an exit."""

from eenet.inference_modules.base import InferenceModule, run_inference_modules
from eenet.inference_modules.heads import ConvPoolHead, LinearHead, MLPHead

__all__ = ["ConvPoolHead", "InferenceModule", "LinearHead", "MLPHead", "run_inference_modules"]
