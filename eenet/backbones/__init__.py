"""Backbones cut into stages, one file per family; a new family is one file that keeps the `StagedBackbone` contract.

A family is imported when it is asked for: the runtime needs the contract alone, and neither timm nor torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eenet.backbones.base import StagedBackbone, State, select

if TYPE_CHECKING:
    from eenet.backbones.bert import Bert
    from eenet.backbones.cifar_resnet import CifarResNet
    from eenet.backbones.efficientnet import EfficientNetLite0
    from eenet.backbones.gpt import Gpt
    from eenet.backbones.resnet import ResNet
    from eenet.backbones.timm_generic import TimmBackbone
    from eenet.backbones.traced import Traced
    from eenet.backbones.vit import ViT
    from eenet.backbones.weights import load_weights

_HOMES = {
    "Bert": "bert",
    "CifarResNet": "cifar_resnet",
    "EfficientNetLite0": "efficientnet",
    "Gpt": "gpt",
    "ResNet": "resnet",
    "TimmBackbone": "timm_generic",
    "Traced": "traced",
    "ViT": "vit",
    "load_weights": "weights",
}

__all__ = [
    "Bert",
    "CifarResNet",
    "EfficientNetLite0",
    "Gpt",
    "ResNet",
    "StagedBackbone",
    "State",
    "TimmBackbone",
    "Traced",
    "ViT",
    "load_weights",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
