"""Weights of another input size, number of channels or dialect of names, adapted as their libraries do."""

import logging
import math
import sys
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

TIMM_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What timm calls the functions that adapt published weights to a model, in the file of the model's class."""


def adapt(model: nn.Module, state: State) -> State:
    """Tensors by name, adapted to a model as far as they do not fit it already and can be."""
    own = model.state_dict()
    if misfits(own, state):
        other = _translated(model, state)
        if misfits(own, other) < misfits(own, state):
            state = other
    return {name: _adapted(model, name, value, own.get(name)) for name, value in state.items()}


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int:
    """How many tensors are missing, unknown, or of another shape."""
    return len(own.keys() ^ state.keys()) + sum(
        own[name].shape != state[name].shape for name in own.keys() & state.keys()
    )


def is_transformers(model: nn.Module) -> bool:
    """Whether a model is one of transformers."""
    return hasattr(model, "base_model_prefix") and hasattr(model, "config")


def _translated(model: Any, state: State) -> State:
    try:
        if hasattr(model, "pretrained_cfg"):
            return _by_timm(model, state)
        if is_transformers(model):
            return _by_transformers(model, state)
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError, TypeError):
        pass  # a filter that meets the weights of another architecture
    return state


def _by_timm(model: nn.Module, state: State) -> State:
    home = sys.modules[type(model).__module__]
    filters = [getattr(home, name) for name in TIMM_FILTERS if hasattr(home, name)]
    if not filters:
        return state
    takes = signature(filters[0]).parameters
    scales = {"adapt_layer_scale": True} if "adapt_layer_scale" in takes else {}
    return filters[0](dict(state), **({"model": model} if len(takes) > 1 else {}), **scales)


def _by_transformers(model: Any, state: State) -> State:
    """Names as `from_pretrained` maps them; a tensor of another shape is found by the end of its name."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what did not fit is said once, by us
    try:
        read, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(state),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    finally:
        logger.setLevel(level)
    others = {name: tuple(shape) for name, shape, _ in info["mismatched_keys"]}
    found = {k: v for k, v in read.state_dict().items() if k not in others and k not in set(info["missing_keys"])}
    for name, shape in others.items():
        same = [v for k, v in state.items() if tuple(v.shape) == shape and k.split(".")[-2:] == name.split(".")[-2:]]
        found |= {name: same[0]} if len(same) == 1 else {}
    return found | {name: state[name] for name in info["unexpected_keys"] if name in state}


def _adapted(model: Any, name: str, value: Tensor, wanted: Tensor | None) -> Tensor:
    if wanted is None or wanted.shape == value.shape or wanted.ndim != value.ndim:
        return value
    if value.ndim == 4 and value.shape[1] == 3 and value.shape[0] == wanted.shape[0]:
        from timm.models import adapt_input_conv

        return adapt_input_conv(wanted.shape[1], value) if value.shape[2:] == wanted.shape[2:] else value
    if value.ndim == 3 and "pos" in name and value.shape[0] == 1 and value.shape[2] == wanted.shape[2]:
        return _positions(model, value, wanted.shape[1])
    return value


def _positions(model: Any, value: Tensor, tokens: int) -> Tensor:
    """Positions `(1, tokens, dim)` on a square grid, after those of class and other tokens, on another grid."""
    before = next((n for n in range(3) if _is_square(value.shape[1] - n) and _is_square(tokens - n)), None)
    if before is None:
        return value
    if type(model).__module__.startswith("torchvision.models.") and before == 1:
        from torchvision.models.vision_transformer import interpolate_embeddings

        name = "encoder.pos_embedding"
        return interpolate_embeddings(model.image_size, model.patch_size, {name: value})[name]
    from timm.layers import resample_abs_pos_embed

    side = math.isqrt(tokens - before)
    return resample_abs_pos_embed(value, [side, side], num_prefix_tokens=before, antialias=not is_transformers(model))


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
