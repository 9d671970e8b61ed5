"""Learning rates that fall until the training ends, wherever a continued run has moved that end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from eenet.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

OptimizerCallable = Callable[[Iterable], Optimizer]
"""Makes an optimizer of parameters; a configuration gives its class and arguments."""


def cosine(optimizer: Optimizer, final: float, trainer: Trainer) -> CosineAnnealingLR:
    """A cosine per epoch to a final learning rate, see `end_schedules`; a `UserError` where the training has no end."""
    return CosineAnnealingLR(optimizer, T_max=_epochs(trainer) or 1, eta_min=final)


def one_cycle(optimizer: Optimizer, warmup: float, trainer: Trainer) -> OneCycleLR:
    """A rise to the optimizer's learning rate over a share of the steps and a fall to nearly 0, both as cosines.

    Raises:
        UserError: The training has no end.
    """
    _epochs(trainer)
    total = max(int(trainer.estimated_stepping_batches), 1) + 1  # the schedule takes a step after the last batch
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=total, pct_start=max(warmup, 2 / total), cycle_momentum=False)


def _epochs(trainer: Trainer) -> int | None:
    """The trainer's last epoch, `None` where steps end the training."""
    epochs = trainer.max_epochs
    if epochs is not None and epochs > 0:
        return epochs
    if trainer.max_steps > 0:
        return None
    raise UserError("trainer.max_epochs", epochs, "the learning rate's schedule needs a last epoch, at least 1")


def end_schedules(trainer: Trainer, updates: int = 1) -> None:
    """Let every schedule end with the training, as `max_epochs` and `max_steps` stand when it starts or continues.

    A schedule whose end has moved falls from the rate where it stands to its final one over what remains, and never
    climbs back; only a one-cycle's rise that is not over goes on to its peak. An end that stays changes nothing.

    Args:
        trainer: A trainer whose training state is restored.
        updates: Optimizer steps that the trainer counts for each batch.

    Raises:
        UserError: A one-cycle that is over would have to go on.
    """
    if trainer.num_training_batches == math.inf:
        return
    progress: Any = trainer.fit_loop.epoch_progress.current
    accumulated, done = trainer.accumulate_grad_batches, progress.processed
    steps = updates * math.ceil(trainer.num_training_batches / accumulated)
    inside = progress.ready > done  # continued in the midst of an epoch
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready if inside else 0
    begun = updates * (batches // accumulated)
    remaining = ((_epochs(trainer) or math.inf) - done) * steps - begun
    if trainer.max_steps > 0:
        remaining = min(remaining, trainer.max_steps - trainer.global_step)
    for schedule in (config.scheduler for config in trainer.lr_scheduler_configs):
        if isinstance(schedule, OneCycleLR):
            _move_end(schedule, schedule.last_epoch + int(remaining) + 1)
        elif isinstance(schedule, CosineAnnealingLR):
            if 0 < schedule.T_max <= schedule.last_epoch:
                rate = schedule.get_last_lr()[0]
                problem = f"the schedule was over: training goes on at its final learning rate {rate:.3g}"
                warnings.warn(problem, stacklevel=2)
            schedule.T_max = done + math.ceil((begun + remaining) / steps)


def _move_end(schedule: OneCycleLR, total: int) -> None:
    if total == schedule.total_steps:
        return
    if schedule.last_epoch + 1 >= schedule.total_steps:
        remedy = "the checkpoint's one-cycle schedule is over and its rate 0; start anew from model.backbone_checkpoint"
        raise UserError("ckpt_path", f"after {schedule.last_epoch} steps", remedy)
    rise, fall = schedule._schedule_phases
    share = (rise["end_step"] + 1) / schedule.total_steps
    rise["end_step"] = min(rise["end_step"], share * total - 1)
    if schedule.last_epoch > rise["end_step"]:
        rise["end_step"] = schedule.last_epoch
        for group in schedule.optimizer.param_groups:
            group["max_lr"] = group["lr"]
    fall["end_step"] = total - 1
    schedule.total_steps = total
