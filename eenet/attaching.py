"""Exits on any model, in one call."""

from typing import Any, Literal

from torch import nn

from eenet.backbones.traced import Traced
from eenet.exits import Exits
from eenet.network import EarlyExitNetwork


def attach(
    model: nn.Module,
    example: Any,
    exits: Exits | None = None,
    pooling: Literal["mean", "first"] = "mean",
    channels: Literal["first", "last"] | None = None,
    **network: Any,
) -> EarlyExitNetwork:
    """Put exits on a model, whose parameters stay its own.

    Args:
        model: A classifier: takes a tensor, or named tensors, whose first axis is the batch; returns logits.
        example: A batch as it takes it.
        exits: Modules after which an exit reads, as `["layer2", "layer3.0"]`; numbers of the usual places, which `eenet
            inspect` lists; `all` of those; or `{"fractions": [...]}` of the MACs, at a quarter, half and three quarters
            if left out.
        pooling: What exits read of several places; see `eenet.backbones.Traced`.
        channels: Which axis holds channels, where it cannot be found.
        network: Further arguments of `EarlyExitNetwork`, such as `inference_module` and `gate`.

    Raises:
        UserError: The model cannot be cut there, or its samples depend on each other.

    Example:
        >>> import torch
        >>> layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
        >>> attach(nn.Sequential(*layers), torch.randn(4, 8), exits=["0"]).num_exits
        2
    """
    wish = {"fractions": [0.25, 0.5, 0.75]} if exits is None else exits
    backbone = Traced(
        model, exits_at=None if wish == "all" else wish, pooling=pooling, channels=channels, example=example
    )
    return EarlyExitNetwork(backbone, **network)
