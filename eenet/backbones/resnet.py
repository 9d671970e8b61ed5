"""Residual networks of timm and torchvision, one stage per residual block."""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import timm
import torchvision
from torch import Tensor, nn

from eenet.backbones.base import State
from eenet.backbones.image import ImageBackbone
from eenet.backbones.timm_model import create_model
from eenet.backbones.weight_files import Which, read_weights
from eenet.backbones.weights import load_state
from eenet.errors import UserError
from eenet.files import NameOrPath


class ResNet(ImageBackbone):
    """A residual network whose features are the globally averaged feature maps.

    Args:
        name: `resnet18`, `resnet50`, `wide_resnet50_2`, ... as the library calls it.
        num_classes: Number of classes.
        image_size: Height and width in pixels.
        in_channels: Channels of the image.
        library: Where the model comes from, `timm` or `torchvision`.
        pretrained: True for the library's published weights, or the path of a weight file.
        small_images: Replace the 7x7 stride-2 stem and its pooling by one 3x3 convolution, for images of 32 pixels;
            weights with another stem leave it untrained.
        overrides: Further arguments of the library's model, such as timm's `channels` and `layers`.
        weights: Of a file that holds weights and their running average, the average (`ema`) or the weights (`raw`).

    Raises:
        UserError: The name is not a residual network of the library, or the image is smaller than the network can use.

    Example:
        >>> resnet = ResNet("resnet18", 10, 32, small_images=True)
        >>> resnet.num_stages, resnet.feature_dims[0], resnet.feature_dims[-1]
        (8, 64, 512)
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        image_size: int = 224,
        in_channels: int = 3,
        library: Literal["timm", "torchvision"] = "timm",
        pretrained: bool | NameOrPath = False,
        small_images: bool = False,
        overrides: dict[str, Any] | None = None,
        weights: Which = "ema",
    ) -> None:
        super().__init__()
        if image_size < 8:
            raise UserError("backbone.image_size", image_size, "a residual network needs at least 8 pixels")
        self.num_classes, self.library = num_classes, library
        named = {"library": library, "name": name, "small_images": small_images}
        self.architecture = named | (overrides or {})
        make, publish = (
            (_timm_resnet, _timm_published) if library == "timm" else (_torchvision_resnet, _torchvision_published)
        )
        self.model = make(name, num_classes, in_channels, overrides or {})
        if small_images:
            width = self.model.bn1.num_features
            self.model.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.model.maxpool = nn.Identity()
        if pretrained:
            state = publish(name, overrides or {}) if pretrained is True else read_weights(pretrained, weights)
            source = f"{library}'s {name}" if pretrained is True else pretrained
            load_state(self.model, _usual_names(state), source, weights, ["conv1"] if small_images else [])
        self.input_shape = (in_channels, image_size, image_size)
        self.num_stages = len(self.blocks)
        self.feature_dims = [_out_channels(block) for block in self.blocks]
        self.map_dims = self.feature_dims

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks of the four layers, in order."""
        model = self.model
        return list(chain(model.layer1, model.layer2, model.layer3, model.layer4))

    def embed(self, inputs: Tensor) -> State:
        """The stem: `(batch, channels, height, width)`."""
        model = self.model
        act = model.act1 if self.library == "timm" else model.relu
        return model.maxpool(act(model.bn1(model.conv1(inputs))))

    def classify(self, state: State) -> Tensor:
        """Global pooling and the model's own linear head."""
        model = self.model
        if self.library == "timm":
            return model.forward_head(state)
        return model.fc(model.avgpool(state).flatten(1))


def _timm_resnet(name: str, num_classes: int, in_channels: int, overrides: dict[str, Any]) -> nn.Module:
    model = create_model(name, num_classes, in_channels, False, overrides)
    if not all(hasattr(model, part) for part in ("conv1", "bn1", "act1", "layer4")):
        raise UserError("backbone.name", name, f"is a {type(model).__name__}, not a residual network of timm")
    return model


def _timm_published(name: str, overrides: dict[str, Any]) -> dict[str, Tensor]:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    return create_model(name, cfg.num_classes, cfg.input_size[0], True, overrides).state_dict()


def _torchvision_resnet(name: str, num_classes: int, in_channels: int, overrides: dict[str, Any]) -> nn.Module:
    names = [known for known in torchvision.models.list_models() if "resne" in known and "/" not in known]
    if name not in names:
        raise UserError("backbone.name", name, f"torchvision has {', '.join(names)}")
    model = torchvision.models.get_model(name, num_classes=num_classes, **overrides)
    if in_channels != 3:
        stem = model.conv1
        model.conv1 = nn.Conv2d(in_channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
    return model


def _torchvision_published(name: str, overrides: dict[str, Any]) -> dict[str, Tensor]:
    try:
        return torchvision.models.get_model(name, weights="DEFAULT", **overrides).state_dict()
    except (OSError, RuntimeError) as error:
        remedy = "weights cannot be downloaded here; give the path of a weight file or `false`"
        raise UserError("backbone.pretrained", True, f"{remedy} ({type(error).__name__}: {error})") from error


def _usual_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as timm and torchvision write them; the widespread CIFAR code says `shortcut` and `linear`."""
    if not any(".shortcut." in name for name in state):
        return dict(state)
    return {re.sub(r"(^|\.)linear\.", r"\1fc.", k.replace(".shortcut.", ".downsample.")): v for k, v in state.items()}


def _out_channels(block: nn.Module) -> int:
    convolutions = [child for name, child in block.named_children() if name.startswith("conv")]
    last = convolutions[-1]
    assert isinstance(last, nn.Conv2d)
    return last.out_channels
