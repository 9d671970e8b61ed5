"""What tells a run from others: all that its model, data and training were given beside the defaults."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eenet.described import Described, describe
from eenet.errors import UserError
from eenet.runs.paths import map_paths

SPEED_ONLY = re.compile(r"data\.(num_workers|eval_batch_size)|model\.features(\.(store|folder))?")
"""Fields that change how fast a run is and where it keeps what, not what comes out."""

TRAINER = {
    "max_epochs": None,
    "max_steps": -1,
    "precision": "32-true",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "check_val_every_n_epoch": 1,
    "val_check_interval": 1.0,
}
"""What a trainer was told that changes what comes out, with Lightning's defaults."""

WATCHING = re.compile(
    r"(eenet|lightning_modules)\..*"
    r"|lightning\.pytorch\.callbacks\.(model_checkpoint|on_exception_checkpoint|progress\..*|(rich_)?model_summary"
    r"|lr_monitor|device_stats_monitor|throughput_monitor)"
)
"""Modules of callbacks that leave a training as it would be without them."""


def training_identity(trainer: Any) -> dict[str, Any]:
    """The fields of `TRAINER` that differ from the defaults, and the classes of callbacks that change a training."""
    found = {name: getattr(trainer, name, usual) for name, usual in TRAINER.items()}
    fields = {
        f"trainer.{name}": str.__str__(value) if isinstance(value, str) else value
        for name, value in found.items()
        if value != TRAINER[name]
    }
    kinds = [type(callback) for callback in trainer.callbacks]
    acting = sorted({kind.__name__ for kind in kinds if not WATCHING.fullmatch(kind.__module__)})
    return {**fields, "trainer.callbacks": acting} if acting else fields


def identify(model: Any, data: Any) -> dict[str, Any]:
    """What a routine and its data were given beside the defaults.

    Args:
        model: The routine.
        data: Its data, `None` or an object of any kind where loaders were given.

    Returns:
        `fields`, such as `model.tradeoff`, in short names; of paths, the last part alone. `gate` and `heads`: their
        classes. `lambda`: the routine's `tradeoff`, if it has one.
    """
    parts = {"model": model, **({"data": data} if isinstance(data, Described) else {})}
    found = {}
    for name, part in parts.items():
        try:
            found[name] = map_paths(describe(part), lambda path, _: short(path))
        except UserError as error:  # a model of one's own notebook
            found[name] = {"class_path": f"{type(part).__qualname__} ({error.field} unknown)"}
    network = model.network
    return {
        "gate": type(network.gate).__name__,
        "heads": sorted({type(head).__name__ for head in network.inference_modules}),
        "lambda": getattr(model, "tradeoff", None),
        "fields": {name: value for name, value in flatten("", found) if not SPEED_ONLY.fullmatch(name)},
    }


def short(path: str) -> str:
    """The name of what lies at a path; of a checkpoint, of its run.

    Example:
        >>> short("/runs/digits/checkpoints/last.ckpt"), short("/data/cifar")
        ('digits', 'cifar')
    """
    found = Path(path)
    return found.parent.parent.name if found.parent.name == "checkpoints" else found.name


def flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Fields of a configuration by short names, in which a class stands for itself.

    Example:
        >>> dict(flatten("model", {"class_path": "a.Joint", "init_args": {"tradeoff": 0.1, "exits": [1, 2]}}))
        {'model': 'Joint', 'model.tradeoff': 0.1, 'model.exits': [1, 2]}
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "class_path":
                yield prefix, inner.rpartition(".")[2]
            elif key == "init_args":
                yield from flatten(prefix, inner)
            else:
                yield from flatten(f"{prefix}.{key}".lstrip("."), inner)
    else:
        yield prefix, value
