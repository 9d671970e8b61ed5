"""Tuned weights of a decoder, kept alone beside the name of the model that they belong to; adapters of peft."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eenet.backbones.decoder import find_layers
from eenet.errors import UserError, said
from eenet.files import tensor_digest, whole
from eenet.reading import read_json

DESCRIPTION, WEIGHTS = "tuned.json", "tuned.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What peft calls the files of an adapter."""

PREFIX = "base_model.model."
"""What peft writes before the names of weights."""


@dataclass(frozen=True)
class Tuned:
    """What tuned weights are for.

    Attributes:
        base: Name of the model whose weights were tuned, or its folder, in the file as seen from there.
        base_digest: SHA-256 of that model's weights.
        num_layers: Its layers.
        layers: Numbers, in that model, of the layers that were tuned.
        plans: What the tuning drew its plans from.
        kind: `full` weights or a `lora` adapter.
    """

    base: str
    base_digest: str
    num_layers: int
    layers: tuple[int, ...]
    plans: tuple[str, ...]
    kind: str

    @classmethod
    def read(cls, folder: Path) -> "Tuned":
        """From a folder.

        Raises:
            UserError: It is not as `save_tuned` writes it.
        """
        try:
            values = read_json(folder / DESCRIPTION)
            lists = {name: tuple(values[name]) for name in ("layers", "plans")}
            return cls(**{**values, **lists})
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{DESCRIPTION} does not describe tuned weights ({said(error)})"
            raise UserError("model", str(folder), problem) from error


def tuned_folder(path: str) -> Path | None:
    """The folder of tuned weights at a path, which may be that of the run that made them; `None` for none."""
    for folder in (Path(path), Path(path) / "tuned"):
        if (folder / DESCRIPTION).is_file() or (folder / ADAPTER).is_file():
            return folder
    return None


def base_of(folder: Path) -> str:
    """Name or folder of the model that tuned weights or an adapter belong to.

    Raises:
        UserError: They do not say.
    """
    if (folder / DESCRIPTION).is_file():
        base = Tuned.read(folder).base
        return str(folder / base) if (folder / base).is_dir() else base
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not base:
        raise UserError("model", str(folder), "is an adapter that does not name its base model")
    return base


def model_digest(model: Any) -> str:
    """SHA-256 of a model's weights."""
    return tensor_digest(model.state_dict().items())


def linear_maps(model: Any, layers: Iterable[int]) -> list[str]:
    """Paths of the linear maps in some layers: what an adapter is put beside, under the layers' own numbers.

    Raises:
        UserError: They have none.
    """
    from transformers.pytorch_utils import Conv1D

    owner, name = find_layers(model)
    found = []
    for layer in layers:
        path = ".".join(filter(None, (owner, name, str(layer))))
        maps = model.get_submodule(path).named_modules()
        found += [f"{path}.{inner}" for inner, module in maps if isinstance(module, nn.Linear | Conv1D)]
    if not found:
        raise UserError("tuning", "lora", "the layers of this family hold no linear map for an adapter")
    return found


def add_adapter(model: Any, layers: Sequence[int], rank: int, alpha: int) -> None:
    """Put an adapter (LoRA, Hu et al. 2021) beside every linear map of some layers, in place; it alone is trained.

    Raises:
        UserError: peft is not installed, or no linear map.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    # Bound by full paths: peft's own numbering would be off by the layers that a cut model lacks.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear_maps(model, layers), task_type="CAUSAL_LM")
    inject_adapter_in_model(config, model)


def require_peft() -> None:
    """Raise a `UserError` where peft is not installed."""
    if find_spec("peft") is None:
        raise UserError("tuning", "lora", "adapters need peft: pip install 'eenet[decoders]'")


def adapters(model: nn.Module) -> dict[str, Any]:
    """The modules of a model that hold an adapter of peft, by their paths."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def without_adapters(model: Any) -> Any:
    """A model with its adapters merged into its weights, in place.

    Raises:
        UserError: They cannot be merged, as learned prompts cannot.
    """
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        if not hasattr(model.base_model, "merge_and_unload"):
            raise UserError("backbone", type(model).__name__, "has no adapters that could be merged into its weights")
        return model.merge_and_unload()
    for path, module in adapters(model).items():
        module.merge()
        model.set_submodule(path, module.get_base_layer())
    if getattr(model, "_hf_peft_config_loaded", False):
        model._hf_peft_config_loaded = False
    return model


@torch.no_grad()
def save_tuned(model: Any, described: Tuned, folder: Path) -> None:
    """Write tuned weights alone: those that are trained, or the adapter as peft writes it.

    Args:
        model: The tuned model; its trainable weights are written.
        described: What they are for.
        folder: Replaced as a whole.
    """
    with whole(folder, folder=True) as beside:
        beside.mkdir(parents=True, exist_ok=True)
        if described.kind == "lora":
            from peft import get_peft_model_state_dict

            config = model.peft_config["default"]
            config.base_model_name_or_path, config.inference_mode = described.base, True
            config.save_pretrained(beside)
            state = get_peft_model_state_dict(model, save_embedding_layers=False)
            save_file(_plain({PREFIX + name: value for name, value in state.items()}), beside / ADAPTER_WEIGHTS)
        else:
            trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            save_file(_plain(trained), beside / WEIGHTS)
        base = os.path.relpath(described.base, folder) if Path(described.base).is_dir() else described.base
        (beside / DESCRIPTION).write_text(
            json.dumps({**asdict(described), "base": base}, indent=2) + "\n", encoding="utf-8"
        )


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def load_tuned(model: Any, folder: Path) -> Any:
    """Put tuned weights, or an adapter of peft, into the model that they belong to; adapters are merged.

    Args:
        model: The base model, changed in place.
        folder: From `save_tuned`, or an adapter that peft saved.

    Raises:
        UserError: They belong to another model, or to layers that it has not.
    """
    described = Tuned.read(folder) if (folder / DESCRIPTION).is_file() else None
    owner, name = find_layers(model)
    count = len(getattr(model.get_submodule(owner), name))
    if described is not None and described.num_layers != count:
        problem = f"is of a model with {described.num_layers} layers, {described.base} has {count}"
        raise UserError("model", str(folder), problem)
    if described is not None and described.base_digest != model_digest(model):
        raise UserError("model", str(folder), f"was tuned on other weights than {described.base} has now")
    file = folder / (WEIGHTS if described is not None and described.kind == "full" else ADAPTER_WEIGHTS)
    if not file.is_file():
        raise UserError("model", str(folder), f"has no {file.name}")
    state = load_file(file)
    allowed = set(range(count)) if described is None else set(described.layers)
    stray = sorted({layer for key in state if (layer := _layer(key, name)) is not None} - allowed)
    if stray:
        problem = f"holds weights of layers {stray}, which are not among those that it names"
        raise UserError("model", str(folder), problem if described else f"holds weights of layers {stray} of {count}")
    return _load_full(model, state, folder) if file.name == WEIGHTS else _load_adapter(model, state, folder)


def _layer(key: str, name: str) -> int | None:
    found = re.search(rf"(?:^|\.){re.escape(name)}\.(\d+)\.", key)
    return None if found is None else int(found[1])


def _load_full(model: Any, state: dict[str, Tensor], folder: Path) -> Any:
    try:
        lacking = model.load_state_dict(state, strict=False).unexpected_keys
    except RuntimeError as error:
        raise UserError("model", str(folder), f"does not fit its base model ({said(error)})") from error
    if lacking:
        raise UserError("model", str(folder), f"does not fit its base model, which has no {lacking[0]}")
    return model


def _load_adapter(model: Any, state: dict[str, Tensor], folder: Path) -> Any:
    require_peft()
    from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    try:
        inject_adapter_in_model(PeftConfig.from_pretrained(str(folder)), model)
        set_peft_model_state_dict(model, state)
        own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError("model", str(folder), f"cannot be put into its base model ({said(error)})") from error
    if own != set(state):
        differing = sorted(own ^ set(state))[0]
        raise UserError("model", str(folder), f"does not fit its base model: {differing} is in one of them alone")
    return without_adapters(model)
