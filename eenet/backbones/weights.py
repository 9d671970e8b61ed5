"""Reading weight files of other libraries without running code from them."""

import logging
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eenet.errors import UserError

_log = logging.getLogger(__name__)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or a torch file.

    Takes the weights out of a training checkpoint (under `state_dict` or `model`) and drops the `module.` prefix that
    data-parallel training leaves.

    Args:
        path: The weight file.

    Returns:
        Tensors on the CPU by parameter name.

    Raises:
        UserError: The file is absent, or holds anything other than tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("backbone.pretrained", str(path), "no such weight file; give the path of one")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        remedy = "is no file of plain tensors; save the state dict alone, best as .safetensors"
        raise UserError("backbone.pretrained", str(path), f"{remedy} ({type(error).__name__})") from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError("backbone.pretrained", str(path), "holds no state dict; save `model.state_dict()`")
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weight file into a model.

    Every tensor must find its place, but for a head made for other classes: a linear layer whose inputs agree and whose
    outputs do not keeps the model's own weights, and a warning says so.

    Args:
        model: The model that the file was saved from, before it was cut into stages.
        path: A `.safetensors` or torch file.

    Raises:
        UserError: The file cannot be read, or belongs to another architecture.
    """
    load_state(model, read_weights(path), path)


def load_state(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load tensors by name under the rules of `load_weights`; `source` names their origin in errors.

    Raises:
        UserError: The tensors belong to another architecture.
    """
    own = model.state_dict()
    heads = [name for name, module in model.named_modules() if _is_foreign_head(name, module, state)]
    if heads:
        _log.warning("%s: %s has other classes in the file and starts untrained", source, ", ".join(heads))
    kept = {f"{name}.{part}" for name in heads for part in ("weight", "bias")}
    state = {name: value for name, value in state.items() if name not in kept}
    wrong = [name for name, value in state.items() if name in own and own[name].shape != value.shape]
    if wrong:
        raise _refusal(source, "other shapes", wrong)
    result = model.load_state_dict(state, strict=False)
    loaded = {own[name].data_ptr() for name in state.keys() & own.keys()}
    missing = [name for name in result.missing_keys if name not in kept and own[name].data_ptr() not in loaded]
    if missing or result.unexpected_keys:
        raise _refusal(source, "missing or unknown names", missing + result.unexpected_keys)


def _is_foreign_head(name: str, module: nn.Module, state: dict[str, Tensor]) -> bool:
    weight = state.get(f"{name}.weight")
    if weight is None or weight.ndim != 2 or not isinstance(module, nn.Linear):
        return False
    return weight.shape[0] != module.out_features and weight.shape[1] == module.in_features


def _refusal(source: str | Path, problem: str, names: list[str]) -> UserError:
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return UserError("backbone.pretrained", str(source), f"is of another architecture, {problem}: {some}")
