"""Exits on any model, in one call."""

from typing import Any, Literal

from torch import nn

from eenet.backbones.traced import Traced
from eenet.errors import UserError
from eenet.exits import Exits
from eenet.network import EarlyExitNetwork


def attach(
    model: nn.Module,
    example: Any,
    exits: Exits | int = 3,
    pooling: Literal["mean", "first"] = "mean",
    channels: Literal["first", "last"] | None = None,
    **network: Any,
) -> EarlyExitNetwork:
    """Put exits on a model, whose parameters stay its own.

    Args:
        model: A classifier: takes a tensor, or named tensors, whose first axis is the batch; returns logits.
        example: A batch as it takes it.
        exits: Modules after which an exit reads, as `["layer2", "layer3.0"]`; numbers of the usual places, which `eenet
            inspect` lists; `all` of those; `{"fractions": [...]}` of the MACs; or how many, at equal distances in MACs.
        pooling: What exits read of several places; see `eenet.backbones.Traced`.
        channels: Which axis holds channels, where it cannot be found.
        network: Further arguments of `EarlyExitNetwork`, such as `inference_module` and `gate`.

    Raises:
        UserError: The model cannot be cut there, its samples depend on each other, or less than one exit is asked for.

    Example:
        >>> import torch
        >>> layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
        >>> attach(nn.Sequential(*layers), torch.randn(4, 8), exits=["0"]).num_exits
        2
    """
    at = spaced(exits) if isinstance(exits, int) else None if exits == "all" else exits
    backbone = Traced(model, exits_at=at, pooling=pooling, channels=channels, example=example)
    return EarlyExitNetwork(backbone, **network)


def spaced(exits: int) -> dict[str, list[float]]:
    """Fractions of the MACs at equal distances.

    Example:
        >>> spaced(3)
        {'fractions': [0.25, 0.5, 0.75]}
    """
    if exits < 1:
        raise UserError("exits", exits, "must be at least 1, or say where exits are")
    return {"fractions": [number / (exits + 1) for number in range(1, exits + 1)]}
