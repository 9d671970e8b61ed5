"""How optimizers step, and learning rates that fall until the training ends, wherever a continued run has moved it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from eenet.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

OptimizerCallable = Callable[[Iterable], Optimizer]
"""Makes an optimizer of parameters; a configuration gives its class and arguments."""


def cosine(optimizer: Optimizer, final: float, trainer: Trainer) -> CosineAnnealingLR:
    """A cosine per epoch from the optimizer's learning rate to a final one; `end_schedules` settles the last epoch.

    Raises:
        UserError: The training has no end.
    """
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


def fuse(optimizers: Iterable[Optimizer]) -> None:
    """Let optimizers of parameters on the CPU take each step in one kernel where torch has one and nobody chose.

    Elsewhere torch chooses well itself; on the CPU it goes from parameter to parameter, which takes as long as all that
    a step of small inference modules computes. Momentum begins as zeros, from which its first step is as torch's: the
    kernel does not take parameters with momentum beside others that have had no gradient yet.
    """
    for optimizer, group in ((each, group) for each in optimizers for group in each.param_groups):
        weights = [weight for weight in group["params"] if weight.requires_grad]
        chosen = any(group.get(name) for name in ("foreach", "differentiable", "capturable", "dampening"))
        if type(optimizer) not in (SGD, Adam, AdamW) or chosen:
            continue
        if not all(weight.device.type == "cpu" and weight.is_floating_point() for weight in weights):
            continue
        group["fused"] = group["fused"] is not False
        if group["fused"] and group.get("momentum"):
            for weight in weights:
                if optimizer.state[weight].get("momentum_buffer") is None:
                    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


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
