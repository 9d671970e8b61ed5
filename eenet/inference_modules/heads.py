"""Linear, MLP and pooled-convolution heads."""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.errors import UserError
from eenet.inference_modules.base import InferenceModule, Reads


class LinearHead(InferenceModule):
    """One linear layer on the pooled features (JEI-DNN, section 4).

    Args:
        dim: Width of the features.
        num_classes: Number of classes.
        normalize: Standardise each feature vector first, without learned scale; residual streams grow with depth and
            the exits then train at one learning rate.

    Example:
        >>> LinearHead(16, 10)(torch.zeros(2, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(self, dim: int, num_classes: int, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        if self.normalize:
            features = F.layer_norm(features, features.shape[-1:])
        return self.linear(features)

    @staticmethod
    def run_batched(modules: Sequence[InferenceModule], features: Sequence[Tensor]) -> Tensor | None:
        """One `baddbmm` over exits of equal width."""
        heads = cast(Sequence[LinearHead], modules)
        if len({(head.linear.in_features, head.normalize) for head in heads}) > 1:
            return None
        rows = torch.stack(list(features))
        if heads[0].normalize:
            rows = F.layer_norm(rows, rows.shape[-1:])
        weights = torch.stack([head.linear.weight for head in heads])
        biases = torch.stack([head.linear.bias for head in heads])
        return torch.baddbmm(biases.unsqueeze(1), rows, weights.transpose(1, 2)).transpose(0, 1)


class MLPHead(InferenceModule):
    """Two linear layers with a GELU between, after a layer norm.

    Args:
        dim: Width of the features.
        num_classes: Number of classes.
        hidden: Width of the hidden layer.
        dropout: Probability of dropping a hidden unit during training.
    """

    def __init__(self, dim: int, num_classes: int, hidden: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden < 1:
            raise UserError("inference_module.hidden", hidden, "must be at least 1")
        self.layers = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        return self.layers(features)


class ConvPoolHead(InferenceModule):
    """Pointwise convolution, batch norm and ReLU on the feature map, mean and maximum pooling, a linear layer.

    Args:
        dim: Channels of the feature map.
        num_classes: Number of classes.
        hidden: Channels after the convolution.
    """

    reads: ClassVar[Reads] = "map"

    def __init__(self, dim: int, num_classes: int, hidden: int = 64) -> None:
        super().__init__()
        if hidden < 1:
            raise UserError("inference_module.hidden", hidden, "must be at least 1")
        self.convolution = nn.Sequential(nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.linear = nn.Linear(2 * hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(batch, classes)` from a map `(batch, dim, height, width)`."""
        maps = self.convolution(features)
        return self.linear(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
