"""Any timm model that runs its children one after the other: EfficientNet, MobileNetV3, ConvNeXt, Swin, MLP-Mixer."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from eenet.backbones.base import State
from eenet.backbones.image import ImageBackbone
from eenet.backbones.timm_model import create_model
from eenet.backbones.weight_files import Which
from eenet.errors import UserError
from eenet.files import NameOrPath

CONTAINERS = ("blocks", "stages", "layers")
HEADS = ("global_pool", "head_drop", "head", "fc_norm", "classifier", "fc")


class TimmBackbone(ImageBackbone):
    """A timm model whose stages are the members of its `blocks`, `stages` or `layers`.

    Whether a model really is its stem, these stages and its head in that order shows only when it runs. So a copy with
    disturbed weights is run both ways when the backbone is made, and a model that gives two answers is refused.

    Args:
        name: timm model name, such as `efficientnet_b0` or `convnext_tiny`.
        num_classes: Number of classes.
        image_size: Height and width in pixels; the model's own when `None`.
        in_channels: Channels of the image.
        pretrained: True for timm's published weights, or the path of a weight file (`.safetensors`, `.pth`).
        overrides: Further arguments of the timm model, such as `drop_path_rate`.
        weights: Of a file that holds weights and their running average, the average (`ema`) or the weights (`raw`).

    Raises:
        UserError: The name is unknown to timm, or the model cannot be cut this way.

    Example:
        >>> convnext = TimmBackbone("convnext_atto", 10, 32)
        >>> convnext.num_stages, convnext.feature_dims
        (4, [40, 80, 160, 320])
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        image_size: int | None = None,
        in_channels: int = 3,
        pretrained: bool | NameOrPath = False,
        overrides: dict[str, Any] | None = None,
        weights: Which = "ema",
    ) -> None:
        super().__init__()
        self.num_classes, self.architecture = num_classes, {"name": name, **(overrides or {})}
        self.model = create_model(name, num_classes, in_channels, pretrained, overrides or {}, weights)
        containers = [part for part, _ in self.model.named_children() if part in CONTAINERS]
        if not containers or not hasattr(self.model, "forward_head"):
            raise UserError("backbone.name", name, f"has none of {', '.join(CONTAINERS)} that stages could be cut from")
        self.container = containers[0]
        size = image_size or self.model.pretrained_cfg["input_size"][-1]
        self.input_shape = (in_channels, size, size)
        self.num_stages = len(self.blocks)
        maps = [tuple(self._channels_first(state).shape) for state in _prove_equal(self)]
        self.feature_dims = [shape[1] for shape in maps]
        self.map_dims = self.feature_dims if all(len(shape) == 4 for shape in maps) else None

    @property
    def blocks(self) -> list[nn.Module]:
        """What the stages run, in order."""
        return list(_members(getattr(self.model, self.container)))

    def embed(self, inputs: Tensor) -> State:
        """The children in front of the stages: `(batch, channels, height, width)` or `(batch, tokens, dim)`."""
        for name in takewhile(lambda child: child != self.container, self.model._modules):
            inputs = self.model.get_submodule(name)(inputs)
        return inputs

    def features(self, i: int, state: State) -> Tensor:
        """Mean over the positions, `(batch, channels)`."""
        return self._channels_first(state).flatten(2).mean(dim=2)

    def feature_map(self, i: int, state: State) -> Tensor:
        """The map itself, `(batch, channels, height, width)`."""
        return super().feature_map(i, self._channels_first(state))

    def classify(self, state: State) -> Tensor:
        """The children between the stages and the head, and the model's own head."""
        names = list(self.model._modules)
        after = names[names.index(self.container) + 1 :]
        for name in takewhile(lambda child: child not in HEADS, after):
            state = self.model.get_submodule(name)(state)
        return self.model.forward_head(state)

    def _channels_first(self, state: Tensor) -> Tensor:
        last = state.ndim == 3 or getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return state.movedim(-1, 1) if last else state


def _members(container: nn.Module) -> Iterator[nn.Module]:
    for child in container.children():
        if type(child) is nn.Sequential:
            yield from _members(child)
        else:
            yield child


@torch.no_grad()
def _prove_equal(backbone: TimmBackbone) -> list[Tensor]:
    """The states after each stage of a disturbed copy, for which the staged and the original model agreed.

    Parameters that start at zero, or near it, would hide a part that was left out; the disturbance makes all count. The
    others change by a tenth, so that a deep model does not overflow.
    """
    probe = deepcopy(backbone).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in probe.parameters():
            size = float(parameter.square().mean().sqrt())
            parameter.add_(torch.randn_like(parameter), alpha=size / 10 if size > 1e-3 else 0.01)
        images = torch.randn(2, *probe.input_shape)
    try:
        expected = probe.model(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        problem = f"the model refuses images of this size ({error}); some need `img_size` in the overrides"
        raise UserError("backbone.image_size", probe.input_shape[-1], problem) from error
    refusal = UserError(
        "backbone.name", backbone.architecture["name"], "is no plain sequence of stem, stages and head; see ViT, ResNet"
    )
    try:
        states = [probe.embed(images)]
        for i in range(probe.num_stages):
            states.append(probe.run_stage(i, states[-1]))
        logits = probe.classify(states[-1])
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise refusal from error
    varies = expected.isfinite().all() and expected.std() > 0
    if not varies or logits.shape != expected.shape or (logits - expected).abs().max() > 1e-4 * expected.abs().max():
        raise refusal
    return states[1:]
