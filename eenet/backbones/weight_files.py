"""Reading weight files of other libraries without running code from them."""

import logging
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eenet.errors import UserError
from eenet.reading import UNREADABLE

Which = Literal["ema", "raw"]
"""Of weights and their running average in one file: the average, or the weights themselves."""

RAW = ("state_dict", "model_state_dict", "model", "net", "network", "student")
AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "teacher")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What compiled and sharded modules put into names, at any depth."""

IN_FOLDERS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)

_log = logging.getLogger(__name__)


def read_weights(path: str | Path, weights: Which = "ema") -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` file, a torch file, or the folder of a transformers or timm model.

    A training checkpoint has it under one of `RAW`, `AVERAGED` or both.

    Args:
        path: The file or folder.
        weights: What to take of a file that holds both.

    Returns:
        Tensors on the CPU by parameter name, without `WRAPPERS`.

    Raises:
        UserError: The file is absent, needs code to be read, or holds no state dict, or only averages where they are
            not wanted.
    """
    found = [state for file in weight_files(path) for state in _states(_read(file))]
    if not found:
        raise UserError("backbone.pretrained", str(path), "holds no state dict; save `model.state_dict()`")
    averaged = _merged([(key, state) for key, state in found if set(key) & set(AVERAGED)])
    raw = _merged([(key, state) for key, state in found if not set(key) & set(AVERAGED)])
    if weights == "raw" and not raw:
        raise UserError("backbone.weights", "raw", f"{path} holds averaged weights alone; set `weights: ema`")
    if averaged and raw:
        say_which(path, weights)
    state = raw if weights == "raw" or not averaged else averaged
    return {_unwrapped(name): value for name, value in state.items()}


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a NaN or an infinity, as a training that diverged leaves them.

    Example:
        >>> not_finite({"a": torch.ones(2), "b": torch.tensor([1, torch.inf])})
        ['b']
    """
    return [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def say_which(source: str | Path, weights: Which) -> None:
    """Warn that a file holds weights and their average."""
    said = "the average, `weights: raw` the others" if weights == "ema" else "the weights, `weights: ema` their average"
    _log.warning("%s: holds weights and their running average; this takes %s", source, said)


def weight_files(path: str | Path) -> list[Path]:
    """The file, or the files of a folder that hold its model's weights; a `UserError` where there is none."""
    file = Path(path)
    found = [file] if file.is_file() else next(filter(None, (sorted(file.glob(name)) for name in IN_FOLDERS)), [])
    if not found:
        raise UserError("backbone.pretrained", str(path), "no such weight file; give the path of one")
    return found


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([Namespace]):  # the arguments of timm's and torchvision's scripts
            return torch.load(file, map_location="cpu", weights_only=True)
    except (PermissionError, torch.OutOfMemoryError):
        raise
    except (SafetensorError, *UNREADABLE) as error:
        remedy = f"is no file of plain tensors; save the state dict alone, best as .safetensors ({_cause(file, error)})"
        raise UserError("backbone.pretrained", str(file), remedy) from error


def _cause(file: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(file):
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - {"argparse.Namespace"}
        if names:
            return f"it needs {', '.join(sorted(names))}"
    return type(error).__name__


def _states(content: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """State dicts in what a file holds, each with the keys that lead to it."""
    if not isinstance(content, Mapping):
        return
    if "current_model_state" in content:  # of Lightning's WeightAveraging
        content = {"state_dict_ema": content.get("state_dict"), "state_dict": content["current_model_state"]}
    below = [state for name in (*RAW, *AVERAGED, "module") for state in _states(content.get(name), (*key, name))]
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if below:
        yield from below
    elif tensors:
        yield key, tensors


def _merged(found: list[tuple[tuple[str, ...], dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The parts of a model in several files; of several models in one file, the first."""
    return {name: value for key, state in found if key == found[0][0] for name, value in state.items()}


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
