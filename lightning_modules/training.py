"""Training and testing from Python, as `eenet fit` and `eenet test` do from a configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from eenet.api.opening import Run, open_run
from eenet.calibration import Calibration
from eenet.errors import UserError
from eenet.reporting import Results
from eenet.runs import RunFolder
from lightning_modules.backbone import BackboneTraining
from lightning_modules.decoupled import DecoupledExits
from lightning_modules.joint import JointExits
from lightning_modules.quee import QuEE
from lightning_modules.quiet import quiet
from lightning_modules.routine import ExitRoutine
from lightning_modules.weighted import WeightedExits

METHODS: dict[str, type[ExitRoutine]] = {
    "backbone": BackboneTraining,
    "jei_dnn": JointExits,
    "decoupled": DecoupledExits,
    "l2w_den": WeightedExits,
    "quee": QuEE,
}
"""Routines by the name of their method."""

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def train(
    model: Any,
    data: Any,
    method: str = "jei_dnn",
    *,
    run: str | Path = "runs/default",
    epochs: int = 15,
    seed: int = 0,
    trainer: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train a network, and keep the run in a folder.

    Args:
        model: An `EarlyExitNetwork`; for `backbone`, a `StagedBackbone`.
        data: A data module of eenet, or `eenet.data.OwnData` of loaders or of another data module.
        method: `backbone`, `jei_dnn`, `decoupled` (confidence thresholds), `l2w_den` or `quee`.
        run: The run folder.
        epochs: Passes over the training split.
        seed: Of batches, augmentation and what is drawn in training; the network's weights are there already.
        trainer: Further arguments of Lightning's `Trainer`.
        options: Further arguments of the routine, such as `tradeoff` or `budgets`.

    Raises:
        UserError: An unknown method, a model, data or options that do not fit it, or a folder that holds a run.
    """
    if method not in METHODS:
        raise UserError("method", method, f"must be one of {', '.join(METHODS)}")
    seed_everything(seed, verbose=False)
    routine = METHODS[method](model, **options)
    routine.meet(data)
    settings = {**QUIET, "max_epochs": epochs, **(trainer or {})}
    with quiet():
        lightning = Trainer(default_root_dir=str(run), **settings)
        lightning.fit(routine, datamodule=data)
    device = lightning.strategy.root_device
    detach(routine, data)
    if next(routine.parameters()).dtype != torch.float32:
        routine.float()  # as an opened run is, whatever `trainer.precision` it was trained in
    folder = RunFolder(Path(run))
    return Run(folder.path, folder.last, routine.to(device).eval(), data, device, data.fingerprint("val"))


def evaluate(
    run: Run | str | Path, point: str | None = None, *, per_class: bool = False, checkpoint: str = "last"
) -> Results:
    """Really route the test split, and write `results.json` and figures; prints the table, as `eenet test` does.

    Args:
        run: The run, or its folder.
        point: Points of `calibrate` between commas, or `all`; the run's own by default.
        per_class: Report the accuracy of every class too.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: No such run or point, or a point that was not chosen for the run's weights and data.
    """
    if not isinstance(run, Run) or not isinstance(run.model, LightningModule):
        folder, name = (run.folder, str(run.checkpoint)) if isinstance(run, Run) else (run, checkpoint)
        run = open_run(folder, checkpoint=name, trains=True)
    model: ExitRoutine = run.model
    model.per_class, model.results = per_class, {}
    model.calibration, model.calibrated_points = None, {}
    if point is not None:
        model.calibration = Calibration.of(run.folder, run.checkpoint, point, model.network)
        model.calibrated_points = model.calibration.choose(point)
    where = {"accelerator": "cpu"} if run.device.type == "cpu" else {}
    with quiet():
        lightning = Trainer(default_root_dir=str(run.folder), devices=1, **QUIET, **where)  # type: ignore[arg-type]
        lightning.test(model, datamodule=run.data, ckpt_path=str(run.checkpoint), verbose=False)
    detach(model, run.data)
    if not model.results:
        raise UserError("data", run.data.name, "has no test samples")
    return model.results


def detach(routine: Any, data: Any) -> None:
    """Let a routine and its data forget their trainer."""
    routine.trainer = data.trainer = None
