"""Tiny networks and data that the tests share."""

from typing import Any

from eenet.backbones import ResNet, ViT
from eenet.network import EarlyExitNetwork

VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "num_classes": 10,
    "image_size": 8,
    "in_channels": 1,
    "overrides": {"patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2},
}
"""Arguments of a four-block transformer for the digits."""


def make_vit(**overrides: Any) -> ViT:
    return ViT(**{**VIT, "overrides": VIT["overrides"] | overrides})


def make_resnet() -> ResNet:
    narrow = {"channels": (4, 8, 8, 8), "layers": (1, 1, 1, 1)}
    return ResNet("resnet18", 10, 8, 1, small_images=True, overrides=narrow)


def make_network(**arguments: Any) -> EarlyExitNetwork:
    return EarlyExitNetwork(make_vit(), **arguments).eval()
