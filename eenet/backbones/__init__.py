"""Backbones cut into stages, one file per family; a new family is one file that keeps the `StagedBackbone` contract.

A family is imported when it is asked for: the runtime needs the contract alone, and neither timm nor torchvision.
"""

from typing import TYPE_CHECKING

from eenet.backbones.base import StagedBackbone, State, select
from eenet.late import lazily

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
__getattr__ = lazily(__name__)
