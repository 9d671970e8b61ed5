"""What results say of their run: its method, what identifies it, its data, seed and costs."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import eenet
from eenet.files import sha256
from eenet.rank_zero import rank_zero_warn
from eenet.reporting import SCHEMA, Results
from eenet.runs import RunFolder, identify, training_identity

AT_TEST = re.compile(r"model\.(budgets|clip)")
"""Fields that decide how trained weights are used, not how they are trained."""


def heading(routine: Any, split: str) -> Results:
    """The fields of `results.json` above the rows, of a routine with a trainer and the split `val` or `test`."""
    trainer, backbone = routine.trainer, routine.network.backbone
    data, trained = trainer.datamodule, routine.trained or training_record(trainer)
    identity = identify(routine, data)
    if trainer.state.fn != "fit":
        identity = as_trained(identity, trained.get("identity"))
    used = None if trainer.ckpt_path is None or trainer.state.fn == "fit" else Path(trainer.ckpt_path)
    quantized = {"quantization": found} if (found := routine.network.quantization) else {}
    return {
        "schema": SCHEMA,
        "method": routine.method,
        "identity": {**identity, "fields": {**identity["fields"], **trained["trainer"]}},
        "data": routine.data_name or data_kind(trainer, split),
        "data_split": data.split_record() if hasattr(data, "split_record") else None,
        "backbone": backbone.description(),
        "exit_stages": routine.network.exit_stages,
        "seed": trained["seed"],
        "split": split,
        "part": part(trainer, split),
        "checkpoint": (folder_of(trainer).tag(used) if used else "") or "last",
        "checkpoint_digest": sha256(used) if used is not None and split == "test" else None,
        "costs": routine.network.parts.to_dict(),
        **quantized,
        "versions": {"eenet": eenet.__version__, "torch": torch.__version__},
    }


def as_trained(identity: dict[str, Any], trained: dict[str, Any] | None) -> dict[str, Any]:
    """What results say that their run is: as its weights were trained, whatever the configuration asks for since.

    Args:
        identity: From the configuration in use.
        trained: From the checkpoint, `None` in those of versions that did not say.

    Returns:
        What was trained, with the fields of `AT_TEST` as they are now.
    """
    if trained is None:
        return identity
    now, before = identity["fields"], trained["fields"]
    for name in sorted({*now, *before}):
        if now.get(name) != before.get(name) and not AT_TEST.fullmatch(name):
            said = f"the checkpoint was trained with {before.get(name)!r}, as its results say; train anew for another"
            rank_zero_warn(f"{name} = {now.get(name)!r}: {said}")
    kept = {name: value for name, value in before.items() if not AT_TEST.fullmatch(name)}
    return {**trained, "fields": {**kept, **{name: now[name] for name in now if AT_TEST.fullmatch(name)}}}


def folder_of(trainer: Any) -> RunFolder:
    """The folder of a trainer's run, which no logger decides."""
    return RunFolder(Path(trainer.default_root_dir))


def part(trainer: Any, split: str) -> str | None:
    """That a validation or test sees some of the batches alone; `None` where it sees the whole split."""
    seen = sum(getattr(trainer, f"num_{split}_batches"))
    whole = sum(map(_batches, pytree.tree_leaves(getattr(trainer, f"{split}_dataloaders"))))
    name = {"val": "validation"}.get(split, split)
    return f"the {name} saw {seen:g} of {whole:g} batches" if seen < whole else None


def _batches(loader: Any) -> float:
    try:
        return len(loader)
    except TypeError:
        return float("inf")


def data_kind(trainer: Any, split: str) -> str:
    """A name for data without one: the class of the data module, or of what the loaders read."""
    if trainer.datamodule is not None:
        return type(trainer.datamodule).__name__
    loaders = trainer.test_dataloaders if split == "test" else trainer.val_dataloaders
    loader = loaders[0] if isinstance(loaders, list) else loaders
    return type(getattr(loader, "dataset", loader)).__name__


def training_record(trainer: Any) -> dict[str, Any]:
    """The seed of this process, and what its trainer was told."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {"seed": None if seed is None else int(seed), "trainer": training_identity(trainer)}
