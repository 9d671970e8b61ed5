"""Making a timm model, with errors that a user can act on."""

from typing import Any

import timm
from torch import nn

from eenet.backbones.weight_files import Which
from eenet.backbones.weights import load_weights
from eenet.errors import UserError


def create_model(
    name: str,
    num_classes: int,
    in_channels: int,
    pretrained: bool | str,
    arguments: dict[str, Any],
    weights: Which = "ema",
) -> nn.Module:
    """Make a timm model, `weights` as of `load_weights`; a `UserError` for what is not there or the model refuses."""
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise UserError("backbone.name", name, f"timm has no such model; near it: {near or 'none'}")
    try:
        model = timm.create_model(
            name, pretrained=pretrained is True, num_classes=num_classes, in_chans=in_channels, **arguments
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError("backbone", {"name": name, **arguments}, f"timm refuses it: {error}") from error
    except (OSError, RuntimeError) as error:
        if pretrained is not True:  # nothing was downloaded: memory, say
            raise
        remedy = "weights cannot be downloaded here; give the path of a weight file or `false`"
        raise UserError("backbone.pretrained", pretrained, f"{remedy} ({type(error).__name__}: {error})") from error
    if isinstance(pretrained, str):
        load_weights(model, pretrained, weights)
    return model
