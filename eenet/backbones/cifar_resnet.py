"""The residual networks for 32-pixel images of He et al. 2016 (arXiv 1512.03385, section 4.2), one stage per block."""

import torch.nn.functional as F
from torch import Tensor, nn

from eenet.backbones.base import State
from eenet.backbones.image import ImageBackbone
from eenet.backbones.weight_files import Which
from eenet.backbones.weights import load_weights
from eenet.errors import UserError
from eenet.files import FilePath

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A: every other pixel, channels padded by 0).

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.added = stride, (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in, height, width)` to `(batch, out, height / stride, width / stride)`."""
        shortcut = x
        if self.added:  # ONNX Runtime joins addition and convolution where no empty padding lies between
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class _Network(nn.Module):
    def __init__(self, blocks_per_width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _layer(WIDTHS[0], WIDTHS[0], 1, blocks_per_width)
        self.layer2 = _layer(WIDTHS[0], WIDTHS[1], 2, blocks_per_width)
        self.layer3 = _layer(WIDTHS[1], WIDTHS[2], 2, blocks_per_width)
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class CifarResNet(ImageBackbone):
    """ResNet-20, -32, -44, -56 or -110: `depth = 6n + 2` layers, n blocks at each of 16, 32 and 64 channels.

    The parameters carry the names of the usual published checkpoints (`layer1.0.conv1.weight`, ..., `linear.bias`).

    Args:
        depth: Number of layers with weights, `6n + 2`.
        num_classes: Number of classes.
        image_size: Height and width in pixels, a multiple of 4.
        in_channels: Channels of the image.
        pretrained: Path of a weight file.
        weights: Of a file that holds weights and their running average, the average (`ema`) or the weights (`raw`).

    Raises:
        UserError: The depth is not `6n + 2`, or the image size no multiple of 4.

    Example:
        >>> resnet = CifarResNet(20, 10)
        >>> resnet.num_stages, resnet.feature_dims
        (9, [16, 16, 16, 32, 32, 32, 64, 64, 64])
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        image_size: int = 32,
        in_channels: int = 3,
        pretrained: FilePath | None = None,
        weights: Which = "ema",
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise UserError("backbone.depth", depth, "must be 6n + 2, such as 20, 56 or 110")
        if image_size < 4 or image_size % 4:
            raise UserError("backbone.image_size", image_size, "must be a multiple of 4")
        self.num_classes, self.architecture = num_classes, {"depth": depth}
        blocks_per_width = (depth - 2) // 6
        self.model = _Network(blocks_per_width, num_classes, in_channels)
        if pretrained is not None:
            load_weights(self.model, pretrained, weights)
        self.input_shape = (in_channels, image_size, image_size)
        self.num_stages = len(self.blocks)
        self.feature_dims = [width for width in WIDTHS for _ in range(blocks_per_width)]
        self.map_dims = self.feature_dims

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks of the three layers, in order."""
        return [*self.model.layer1, *self.model.layer2, *self.model.layer3]

    def embed(self, inputs: Tensor) -> State:
        """The first convolution: `(batch, 16, height, width)`."""
        return F.relu(self.model.bn1(self.model.conv1(inputs)))

    def classify(self, state: State) -> Tensor:
        """Global average and the linear head."""
        return self.model.linear(state.mean(dim=(2, 3)))


def _layer(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
