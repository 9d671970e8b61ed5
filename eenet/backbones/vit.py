"""timm's vision transformers (`vit_*`, `deit_*`, register tokens, distilled heads), one stage per block."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eenet.backbones.base import State
from eenet.backbones.image import ImageBackbone
from eenet.backbones.timm_model import create_model
from eenet.backbones.weight_files import Which
from eenet.errors import UserError
from eenet.files import NameOrPath


class ViT(ImageBackbone):
    """A timm vision transformer; its features are what its own head pools: the class token or the mean of the patches.

    Args:
        name: timm model name, such as `vit_tiny_patch16_224` or `deit_small_distilled_patch16_224`.
        num_classes: Number of classes.
        image_size: Height and width in pixels, a multiple of the patch size; the model's own when `None`.
        in_channels: Channels of the image.
        pretrained: True for timm's published weights, or the path of a weight file (`.safetensors`, `.pth`).
        overrides: Further arguments of the timm model, such as `patch_size`, `embed_dim`, `depth`, `num_heads`.
        weights: Of a file that holds weights and their running average, the average (`ema`) or the weights (`raw`).

    Raises:
        UserError: The name is not a vision transformer of timm, or the image size is refused.

    Example:
        >>> vit = ViT("vit_tiny_patch16_224", 10, 8, 1, overrides={"patch_size": 2, "embed_dim": 24, "depth": 2})
        >>> vit.num_stages, vit(vit.example_input()).shape
        (2, torch.Size([1, 10]))
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
        size = {} if image_size is None else {"img_size": image_size}
        self.model = create_model(name, num_classes, in_channels, pretrained, (overrides or {}) | size, weights)
        if not isinstance(self.model, VisionTransformer):
            raise UserError("backbone.name", name, f"is a {type(self.model).__name__}, no vision transformer")
        height, width = self.model.patch_embed.img_size
        patch = self.model.patch_embed.patch_size
        if height % patch[0] or width % patch[1]:
            raise UserError("backbone.image_size", height, f"must be a multiple of the patch size, {patch[0]}")
        self.input_shape = (in_channels, height, width)
        self.num_stages = len(self.model.blocks)
        self.feature_dims = [self.model.embed_dim] * self.num_stages
        self.map_dims = self.feature_dims

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, in order."""
        return list(self.model.blocks)

    def embed(self, inputs: Tensor) -> State:
        """Patches, prefix tokens and positions: `(batch, tokens, dim)`."""
        model = self.model
        tokens = model._pos_embed(model.patch_embed(inputs))
        return model.norm_pre(model.patch_drop(tokens))

    def features(self, i: int, state: State) -> Tensor:
        """Class token or mean of the patch tokens, before any norm, `(batch, dim)`."""
        return self.model.pool(state)

    def feature_map(self, i: int, state: State) -> Tensor:
        """Patch tokens on their grid, `(batch, dim, rows, columns)`."""
        patches = state[:, self.model.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, self.model.patch_embed.grid_size)

    def classify(self, state: State) -> Tensor:
        """Final norm and the model's own head; a distilled DeiT averages its two heads."""
        return self.model.forward_head(self.model.norm(state))
