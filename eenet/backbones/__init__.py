"""Backbones cut into stages, one file per family; a new family is one file that keeps the `StagedBackbone` contract."""

from eenet.backbones.base import StagedBackbone, State, select
from eenet.backbones.resnet import ResNet
from eenet.backbones.vit import ViT

__all__ = ["ResNet", "StagedBackbone", "State", "ViT", "select"]
