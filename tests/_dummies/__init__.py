"""Tiny networks and data that the tests share."""

from typing import Any

from torch import Tensor, nn

from eenet.backbones import ResNet, StagedBackbone, ViT
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


class Layers(StagedBackbone):
    """Two linear layers over the digits: few operations, where many cost a test seconds."""

    num_stages, num_classes, feature_dims, input_shape = 2, 10, [8, 8], (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 10)

    def embed(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"x": inputs.flatten(1)}

    def run_stage(self, i: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": self.layers[i](state["x"]).relu()}

    def features(self, i: int, state: dict[str, Tensor]) -> Tensor:
        return state["x"]

    def classify(self, state: dict[str, Tensor]) -> Tensor:
        return self.head(state["x"])

    def description(self) -> dict[str, Any]:
        return {}
