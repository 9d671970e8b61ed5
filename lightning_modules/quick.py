"""Training steps from stored features without what Lightning does around each, which takes as long as they do.

Small inference modules learn a batch of features in less time than Lightning's loop takes to look for hooks, open
profiles and wrap the optimizer. `quicken` gives the loop a step of the same effects in the same order: progress,
schedules, logging, validations and checkpoints are the loop's own, and of the hooks those are called that somebody has
written. Trainings that ask for what the step does not do keep Lightning's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.optim import SGD, Adam, AdamW

KNOWN = "2.6."
"""Version of Lightning whose loop this is; others keep their own."""

HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
"""What is called in a step, in Lightning's order: of every callback, then of the routine."""

LEFT = ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step")
MOVES = ("on_before_batch_transfer", "on_after_batch_transfer")
"""Hooks of routines and of data that the step passes over, so that one who writes them keeps Lightning's."""


def quicken(trainer: Any) -> None:
    """Give a training from stored features on the CPU, by one process, the quick step.

    Args:
        trainer: Whose training begins.
    """
    if not lightning.__version__.startswith(KNOWN):
        return
    loop, data, routine = trainer.fit_loop.epoch_loop, trainer.datamodule, trainer.lightning_module
    plain = (
        (loop, _TrainingEpochLoop),
        (trainer.strategy, SingleDeviceStrategy),
        (trainer.precision_plugin, Precision),
        (trainer.profiler, PassThroughProfiler),
    )
    vars(loop).pop("advance", None)
    if getattr(data, "kept", None) is not None and all(type(part) is kind for part, kind in plain):
        quick = trainer.strategy.root_device.type == "cpu" and trainer.model is routine
        quick = quick and [type(optimizer) in (SGD, Adam, AdamW) for optimizer in trainer.optimizers] == [True]
        quick = quick and is_param_in_hook_signature(routine.training_step, "batch_idx", min_args=2)
        quick = quick and not any(written(routine, name, LightningModule) for name in (*LEFT, *MOVES))
        if quick and not any(written(data, name, LightningDataModule) for name in MOVES):
            loop.advance = partial(advance, loop, routine, Hooks(trainer))


def written(part: Any, name: str, base: type) -> bool:
    """Whether a hook is another than Lightning's, which does nothing."""
    found = getattr(part, name)
    return getattr(found, "__func__", found) is not getattr(base, name)


class Hooks:
    """Calls the hooks of a step that are written.

    Args:
        trainer: With the callbacks, which may change.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.routine = trainer, trainer.lightning_module
        self.own = {name: written(self.routine, name, LightningModule) for name in HOOKS}
        self.callbacks: list[Callback] = []
        self.calls: dict[str, list[Callable[..., Any]]] = {name: [] for name in HOOKS}

    def refresh(self) -> None:
        """Find the hooks of callbacks that have changed."""
        if self.callbacks != self.trainer.callbacks:
            self.callbacks = list(self.trainer.callbacks)
            for name in HOOKS:
                self.calls[name] = [getattr(c, name) for c in self.callbacks if written(c, name, Callback)]

    def __call__(self, name: str, *args: Any) -> Any:
        """Call a hook of every callback and of the routine, whose answer is returned."""
        vars(self.routine)["_current_fx_name"] = name
        for call in self.calls[name]:
            call(self.trainer, self.routine, *args)
        return getattr(self.routine, name)(*args) if self.own[name] else None


def advance(loop: Any, routine: Any, hooks: Hooks, data_fetcher: Any) -> None:
    """One training batch, as `_TrainingEpochLoop.advance` has it.

    Raises:
        StopIteration: There is none, or the routine's `on_train_batch_start` returned -1.
    """
    trainer, progress, connector = loop.trainer, loop.batch_progress, loop.trainer._logger_connector
    clipped = trainer.gradient_clip_val or trainer.accumulate_grad_batches > 1 or not routine.automatic_optimization
    if loop.restarting or clipped or trainer.lightning_module is not routine:
        return type(loop).advance(loop, data_fetcher)
    loop.val_loop.restarting = False
    hooks.refresh()
    batch, _, _ = next(data_fetcher)
    batch_idx = loop.batch_idx + 1
    progress.is_last_batch = data_fetcher.done
    batch = trainer.datamodule.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
    progress.increment_ready()
    connector.on_batch_start(batch)
    outputs: dict[str, Any] | None = None
    if hooks("on_train_batch_start", batch, batch_idx) == -1:
        progress.increment_by(0, is_last_batch=True)
    else:
        progress.increment_started()
        outputs = optimize(loop, routine, hooks, batch, batch_idx)
    progress.increment_processed()
    loop.update_lr_schedulers("step", update_plateau_schedulers=False)
    if loop._num_ready_batches_reached():
        loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
    if outputs is None:
        raise StopIteration
    hooks("on_train_batch_end", outputs, batch, batch_idx)
    vars(routine)["_current_fx_name"] = None
    connector.on_batch_end()
    progress.increment_completed()
    connector.update_train_step_metrics()
    return None


@torch.enable_grad()
def optimize(loop: Any, routine: Any, hooks: Hooks, batch: Any, batch_idx: int) -> dict[str, Any]:
    """What the training step gives, gradients and a step of the optimizer, as Lightning's automatic optimization."""
    optimizer, counts = loop.trainer.optimizers[0], loop.automatic_optimization.optim_progress.optimizer
    counts.step.increment_ready()
    vars(routine)["_current_fx_name"] = "training_step"
    given = ClosureResult.from_training_step_output(routine.training_step(batch, batch_idx))
    counts.zero_grad.increment_ready()
    hooks("on_before_zero_grad", optimizer)
    counts.zero_grad.increment_started()
    optimizer.zero_grad()
    counts.zero_grad.increment_completed()
    if given.closure_loss is not None:
        hooks("on_before_backward", given.closure_loss)
        routine.backward(given.closure_loss)
        hooks("on_after_backward")
    hooks("on_before_optimizer_step", optimizer)
    optimizer.step()
    counts.step.increment_completed()
    return {} if given.loss is None else given.asdict()
