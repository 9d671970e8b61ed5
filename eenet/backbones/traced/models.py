"""Making a model that a configuration names: of timm, torchvision, transformers, or the user's own file or package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet.backbones.weight_files import Which
from eenet.backbones.weights import load_state, load_weights
from eenet.errors import UserError

FORMS = "timm:NAME, torchvision:NAME, transformers:FOLDER, package.module:NAME or file.py:NAME"


@dataclass(frozen=True)
class Wish:
    """What a model is made of.

    Attributes:
        name: What follows the source and the colon.
        num_classes: Width of the logits, the model's own when `None`.
        input_shape: `(channels, height, width)`, the model's own when `None`.
        pretrained: True for published weights, or a weight file.
        arguments: Of the model's class or function, or values of its configuration.
        tokens: Length of an example text.
        weights: What to take of a file that holds weights and their running average.
    """

    name: str
    num_classes: int | None
    input_shape: tuple[int, ...] | None
    pretrained: bool | str
    arguments: dict[str, Any]
    tokens: int
    weights: Which = "ema"


@dataclass(frozen=True)
class Made:
    """A model and what it takes.

    Attributes:
        model: The model.
        input_shape: Of one image, `None` for texts.
        tokens: Named whole numbers that a text is made of, none for images.
        vocabulary: Token numbers lie below it.
        max_tokens: The longest text.
        loaded: Whether it came with the weights beside its configuration.
    """

    model: nn.Module
    input_shape: tuple[int, ...] | None
    tokens: tuple[str, ...] = ()
    vocabulary: int = 0
    max_tokens: int | None = None
    loaded: bool = False


def make_model(text: str, wish: Wish) -> Made:
    """Make the model that a text names; see `FORMS`.

    Raises:
        UserError: No such form, source or model, arguments that it refuses, or weights of another model.
    """
    source, colon, _ = text.rpartition(":")
    if not colon:
        raise UserError("model", text, f"must be {FORMS}")
    makers: dict[str, Callable[[Wish], Made]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "transformers": _transformers,
    }
    return makers[source](wish) if source in makers else _own(source, wish)


def _timm(wish: Wish) -> Made:
    from eenet.backbones.timm_model import create_model

    shape = wish.input_shape
    channels = 3 if shape is None else shape[0]
    classes = 1000 if wish.num_classes is None else wish.num_classes
    model: Any = create_model(wish.name, classes, channels, wish.pretrained, wish.arguments, wish.weights)
    size = wish.arguments.get("img_size") or model.pretrained_cfg["input_size"][-1]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return Made(model, shape or (channels, height, width))


def _torchvision(wish: Wish) -> Made:
    models = import_module("torchvision.models")
    if wish.name not in models.list_models(models):
        near = ", ".join(get_close_matches(wish.name, models.list_models(models), 3))
        raise UserError("model", wish.name, f"torchvision has no such classifier; near it: {near or 'none'}")
    classes = {} if wish.num_classes is None else {"num_classes": wish.num_classes}
    published = {"weights": "DEFAULT"} if wish.pretrained is True else {}
    model = _called(models.get_model, wish.name, **(published or classes), **wish.arguments)
    if published and classes:
        state, model = model.state_dict(), _called(models.get_model, wish.name, **classes, **wish.arguments)
        _without_auxiliaries(model)
        load_state(model, state, f"torchvision's {wish.name}")
    if not published:
        _load(model, wish)
    _without_auxiliaries(model)
    size = 299 if wish.name == "inception_v3" else wish.arguments.get("image_size", 224)
    return Made(model, wish.input_shape or (3, size, size))


def _without_auxiliaries(model: Any) -> None:
    """Drop auxiliary classifiers, in whose place exits come, as torchvision does where it loads weights."""
    if getattr(model, "aux_logits", False):
        model.aux_logits = False
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, name):
                setattr(model, name, None)


def _transformers(wish: Wish) -> Made:
    if find_spec("transformers") is None:
        raise UserError("model", wish.name, "needs transformers: pip install 'eenet[text]'")
    library = import_module("transformers")
    classes = {} if wish.num_classes is None else {"num_labels": wish.num_classes}
    values = {**wish.arguments, **classes}
    folder = Path(wish.name)
    try:
        if folder.is_dir():
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True, **values)
        else:
            config = library.AutoConfig.for_model(wish.name, **values)
    except (OSError, ValueError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise UserError(
            "model", wish.name, f"is no model's folder and no model type of transformers ({said})"
        ) from error
    if getattr(config, "is_decoder", False):
        raise UserError(
            "model", wish.name, "has is_decoder: true, so tokens see only what is before them; set it to false"
        )
    config.architectures = config.architectures or []  # of several classes for DeiT, transformers looks for one in None
    images = type(config) in library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING  # BEiT has a vocabulary, too
    kind = library.AutoModelForImageClassification if images else library.AutoModelForSequenceClassification
    try:
        model = kind.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError("model", wish.name, f"transformers refuses it: {str(error).partition(chr(10))[0]}") from error
    loaded = folder.is_dir() and isinstance(wish.pretrained, bool)
    if loaded:
        load_weights(model, folder)
    else:
        _load(model, wish)
    if images:
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return Made(model, wish.input_shape or (config.num_channels, height, width), loaded=loaded)
    names = ["input_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 0) > 1 and "token_type_ids" in signature(model.forward).parameters:
        names.append("token_type_ids")
    longest = getattr(config, "max_position_embeddings", None)
    return Made(model, None, tuple(names), config.vocab_size, longest if longest and longest > 0 else None)


def _own(source: str, wish: Wish) -> Made:
    field = f"{source}:{wish.name}"
    module = _file(source) if source.endswith(".py") else _module(source)
    factory = getattr(module, wish.name, None)
    if factory is None:
        near = ", ".join(get_close_matches(wish.name, dir(module), 3))
        raise UserError("model", field, f"{source} has no {wish.name}; near it: {near or 'none'}")
    classes = {}
    if wish.num_classes is not None and callable(factory) and "num_classes" in signature(factory).parameters:
        classes = {"num_classes": wish.num_classes}
    model = factory if isinstance(factory, nn.Module) else _called(factory, **classes, **wish.arguments)
    if not isinstance(model, nn.Module):
        raise UserError("model", field, f"makes a {type(model).__name__}, and no nn.Module")
    _load(model, wish)
    if wish.input_shape is None:
        raise UserError("backbone.input_shape", None, "give the shape of one input, such as [3, 32, 32]")
    return Made(model, wish.input_shape)


def _file(path: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise UserError("model", path, "there is no such file")
    name = f"_eenet_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that what it defines can be pickled
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError("model", name, f"cannot be imported ({error}); a model is {FORMS}") from error


def _called(factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return factory(*args, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        name = args[0] if args else getattr(factory, "__name__", str(factory))
        raise UserError("backbone.arguments", kwargs, f"{name} refuses them: {error}") from error
    except OSError as error:
        raise UserError("backbone.pretrained", True, f"weights cannot be downloaded here ({error})") from error


def _load(model: nn.Module, wish: Wish) -> None:
    if wish.pretrained is True:
        raise UserError("backbone.pretrained", True, f"{wish.name} has no published weights here; give a weight file")
    if isinstance(wish.pretrained, str):
        load_weights(model, wish.pretrained, wish.weights)


def make_example(made: Made, tokens: int, rows: int) -> Any:
    """Samples that differ: noise for images, for texts random tokens of different lengths."""
    draw = torch.Generator().manual_seed(0)
    if made.input_shape is not None:
        return torch.randn(rows, *made.input_shape, generator=draw)
    tokens = min(tokens, made.max_tokens or tokens)
    lengths = tokens - torch.arange(rows) % max(1, tokens // 2)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    low = min(5, made.vocabulary - 1)
    example: dict[str, Tensor] = {
        "input_ids": torch.randint(low, made.vocabulary, (rows, tokens), generator=draw),
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(mask),
    }
    return {name: example[name] for name in made.tokens}
