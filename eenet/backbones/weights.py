"""Loading weights into a model: all of them, or one line that says what is missing."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet.backbones.adapting import adapt, is_transformers
from eenet.backbones.weight_files import Which, not_finite, read_weights, say_which
from eenet.errors import UserError, some

AVERAGE = re.compile(r"(^|[._])(ema|avg|average|swa|teacher)")
"""What a submodule is called that keeps averages."""

HEADS = ("head", "heads", "head_dist", "fc", "classifier", "linear", "last_linear")
"""What libraries call a model's own head."""

_log = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: str | Path, weights: Which = "ema", replaced: Collection[str] = ()) -> None:
    """Load a weight file, or the folder of a transformers or timm model, into a model.

    Every tensor must find its place, with these exceptions, each of which a warning tells: a head made for other
    classes, or absent, keeps the model's own weights; what a trainer keeps beside the model is left out; input
    channels, positions and names are adapted as timm, torchvision and transformers do.

    Args:
        model: The model that the file was saved from, before it was cut into stages.
        path: A `.safetensors` or torch file, or a folder.
        weights: What to take of a file that holds weights and their running average.
        replaced: Modules that were changed after the library made the model; where the file has others, they start
            untrained.

    Raises:
        UserError: The file cannot be read, or belongs to another architecture.
    """
    load_state(model, read_weights(path, weights), path, weights, replaced)


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    weights: Which = "ema",
    replaced: Collection[str] = (),
) -> None:
    """Load tensors by name under the rules of `load_weights`; `source` names their origin in errors.

    Raises:
        UserError: The tensors belong to another architecture, or are not finite.
    """
    if wrong := not_finite(state):
        raise UserError("backbone.pretrained", str(source), f"holds NaN or infinite weights: {some(wrong)}")
    own = model.state_dict()
    given = _without_prefix(own, state, source, weights)
    found = adapt(model, given)
    said = [] if len(given) == len(state) else [f"left out {some(_rest(state, given))}"]
    changed = [name for name in found.keys() & given.keys() if found[name].shape != given[name].shape]
    said += [f"adapted {some(_change(name, given[name], found[name]) for name in sorted(changed))}"] if changed else []

    other = [name for name in replaced if not _fits(own, found, name)]
    heads = [name for name, module in model.named_modules() if _is_foreign_head(name, module, found)]
    said += [f"{some(other)} differs in the file and starts untrained"] if other else []
    said += [f"{some(heads)} has other classes in the file and starts untrained"] if heads else []
    untrained = {name for name in own.keys() | found.keys() if _under(name, [*other, *heads])}
    found = {name: value for name, value in found.items() if name not in untrained}

    shapes = [name for name in found.keys() & own.keys() if own[name].shape != found[name].shape]
    if shapes:
        names = sorted(shapes, key=list(own).index)
        raise _refusal(source, {"other shapes": [_change(name, found[name], own[name]) for name in names]})
    result = model.load_state_dict(found, strict=False)
    loaded = {own[name].data_ptr() for name in found.keys() & own.keys()}
    missing = [name for name in result.missing_keys if name not in untrained and own[name].data_ptr() not in loaded]
    ends = _heads(model, found)
    absent = [name for name in missing if _under(name, ends)] if loaded else []
    left = [name for name in result.unexpected_keys if _under(name, [*ends, *(HEADS if absent else ())])]
    misplaced = {
        "missing": [name for name in missing if name not in absent],
        "unknown": [name for name in result.unexpected_keys if name not in left],
    }
    if any(misplaced.values()):
        raise _refusal(source, misplaced)
    said += [f"left out {some(left)}"] if left else []
    said += [f"the file has no {some(absent)}, which starts untrained"] if absent else []
    if said:
        _log.warning("%s: %s", source, "; ".join(said))


def _without_prefix(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | Path, weights: Which
) -> dict[str, Tensor]:
    """The tensors of the model itself, of all that a wrapper or a trainer has saved, by the model's names.

    The model is what most of its names follow, half of them at least.
    """
    counts = Counter(
        key.removesuffix(name)
        for key in state
        for name in _ends(key)
        if name in own and own[name].ndim == state[key].ndim
    )
    most = max(counts.values(), default=0)
    prefixes = sorted(prefix for prefix, count in counts.items() if count == most) if 2 * most >= len(own) else [""]
    if "" in prefixes:
        plain = not any(name.startswith("module.") for name in own)
        return {name.removeprefix("module.") if plain else name: value for name, value in state.items()}
    parts = {
        prefix: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for prefix in prefixes
    }
    averages = [prefix for prefix in prefixes if AVERAGE.search(prefix)]
    if averages and len(averages) < len(prefixes):
        say_which(source, weights)
        prefixes = [prefix for prefix in prefixes if (prefix in averages) == (weights == "ema")]
    first, *others = (parts[prefix] for prefix in prefixes)
    if not all(_same(first, other) for other in others):
        problem = f"has different weights under {' and '.join(prefixes)}; save one of them"
        raise UserError("backbone.pretrained", str(source), problem)
    return first


def _ends(key: str) -> Iterable[str]:
    parts = key.split(".")
    return (".".join(parts[at:]) for at in range(len(parts)))


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _rest(state: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    taken = {id(value) for value in given.values()}
    return [name for name, value in state.items() if id(value) not in taken]


def _fits(own: Mapping[str, Tensor], state: Mapping[str, Tensor], module: str) -> bool:
    here, there = ({n: v.shape for n, v in part.items() if _under(n, [module])} for part in (own, state))
    return here == there


def _under(name: str, modules: Iterable[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _is_foreign_head(name: str, module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    weight, own = state.get(f"{name}.weight"), getattr(module, "weight", None)
    if weight is None or not isinstance(own, Tensor) or not _may_be_head(module):
        return False
    return weight.shape[0] != own.shape[0] and weight.shape[1:] == own.shape[1:]


def _may_be_head(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _heads(model: Any, state: Mapping[str, Tensor]) -> list[str]:
    """Modules that a file may lack, or have otherwise: what turns features into logits."""
    if is_transformers(model):
        base = model.base_model_prefix
        return [name for name, _ in model.named_children() if name != base] + [
            f"{base}.pooler",
            "pooler",
            "cls",
            "lm_head",
        ]
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    if named:
        return [named] if isinstance(named, str) else list(named)
    last = [name for name, module in model.named_modules() if _may_be_head(module)][-1:]
    tops = [name.partition(".")[0] for name in last]
    return last if any(_under(name, tops) for name in state) else tops


def _change(name: str, before: Tensor, after: Tensor) -> str:
    return f"{name} from {list(before.shape)} to {list(after.shape)}"


def _refusal(source: str | Path, wrong: Mapping[str, list[str]]) -> UserError:
    problems = "; ".join(f"{problem} {some(names)}" for problem, names in wrong.items() if names)
    return UserError("backbone.pretrained", str(source), f"is of another architecture: {problems}")
