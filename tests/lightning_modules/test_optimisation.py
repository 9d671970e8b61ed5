"""The trainer's accumulation and clipping of gradients reach the steps of every routine."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from datamodules import Digits
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from lightning_modules import DecoupledExits, ExitRoutine, JointExits, WeightedExits
from lightning_modules.schedules import fuse
from tests._dummies import make_network


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


class Watch(Callback):
    """Notes the phase and the step count before each batch, and the length of each batch's change."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.steps: list[int] = []
        self.lengths: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, routine: Any, *_: Any) -> None:
        self.phases.append(getattr(routine, "phase", ""))
        self.steps.append(trainer.global_step)
        self.before = [parameter.detach().clone() for parameter in routine.parameters()]

    def on_train_batch_end(self, trainer: Trainer, routine: Any, *_: Any) -> None:
        pairs = zip(self.before, routine.parameters(), strict=True)
        self.lengths.append(math.sqrt(sum((old - new).square().sum().item() for old, new in pairs)))


def train(routine: ExitRoutine, folder: Path, batch_size: int, batches: int, epochs: int, **settings: Any) -> Watch:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    rest = {"enable_checkpointing": False, "limit_val_batches": 2, "num_sanity_val_steps": 0}
    watch = Watch()
    limits = {"limit_train_batches": batches, "max_epochs": epochs, "callbacks": [watch]}
    trainer = Trainer(default_root_dir=folder, **{**quiet, **rest, **limits, **settings})
    trainer.fit(routine, datamodule=Digits(batch_size=batch_size, eval_batch_size=64))
    assert [trainer.gradient_clip_val] == [settings.get("gradient_clip_val")]
    return watch


def joint(phase_batches: int) -> JointExits:
    seed_everything(0)
    return JointExits(make_network(), tradeoff=0.1, optimizer=sgd, warmup_epochs=1, phase_batches=phase_batches)


def test_a_fused_optimizer_takes_the_same_steps_also_where_a_gradient_comes_late() -> None:
    found = []
    for fused in (True, False):
        weights = [torch.nn.Parameter(torch.arange(3.0) + 1), torch.nn.Parameter(torch.ones(2))]
        optimizers = (
            torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
            torch.optim.AdamW(weights, lr=0.1),
        )
        if fused:
            fuse(optimizers)
        assert [optimizer.param_groups[0]["fused"] for optimizer in optimizers] == [fused or None] * 2
        for late in (False, True, True):
            for number, weight in enumerate(weights):
                weight.grad = weight.detach() - number if late or not number else None
            for optimizer in optimizers:
                optimizer.step()
        found.append([weight.detach() for weight in weights])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_an_optimizer_steps_as_it_was_told() -> None:
    weights = [torch.nn.Parameter(torch.ones(2))]
    told = torch.optim.SGD(weights, lr=0.1, foreach=True), torch.optim.Adam(weights, fused=False)
    fuse(told)
    assert not any(optimizer.param_groups[0]["fused"] for optimizer in told)


@pytest.mark.parametrize("rescale", [False, True])
def test_two_batches_accumulated_are_one_batch_of_both(rescale: bool, tmp_path: Path) -> None:
    routines = joint(2), joint(1)
    for routine in routines:
        routine.rescale = rescale
    parts = train(routines[0], tmp_path, 32, 4, 3, accumulate_grad_batches=2)
    whole = train(routines[1], tmp_path, 64, 2, 3)
    assert parts.phases[::2] == parts.phases[1::2] == whole.phases
    assert whole.phases == ["warmup"] * 2 + ["gates", "inference_modules"] * 2
    for part, one in zip(routines[0].state_dict().values(), routines[1].state_dict().values(), strict=True):
        torch.testing.assert_close(part, one, rtol=1e-4, atol=1e-6)


def test_a_phase_ends_with_a_step_and_an_epochs_last_batches_make_one_too(tmp_path: Path) -> None:
    routine = joint(2)
    watch = train(routine, tmp_path, 16, 5, 3, accumulate_grad_batches=3)
    assert watch.phases == ["warmup"] * 5 + ["gates"] * 3 + ["inference_modules"] * 2 + ["gates"] * 3 + ["gates"] * 2
    assert watch.steps == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]
    assert [length > 0 for length in watch.lengths] == [False, False, True, False, True] * 3
    assert routine.joint_batches == 10


ROUTINES: dict[str, Callable[[], ExitRoutine]] = {
    "joint": lambda: joint(1),
    "decoupled": lambda: DecoupledExits(make_network(gate=ConfidenceGate), optimizer=sgd),
    "weighted": lambda: WeightedExits(
        make_network(gate=ConfidenceGate), weight_hidden=8, optimizer=sgd, weight_optimizer=sgd
    ),
}


@pytest.mark.parametrize("algorithm", ["norm", pytest.param("value", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ROUTINES)
def test_clipped_gradients_bound_every_step(name: str, algorithm: str, tmp_path: Path) -> None:
    routine, free = ROUTINES[name](), ROUTINES[name]()
    clip = 1e-3 if algorithm == "norm" else 1e-5
    clipped = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
    watch = train(routine, tmp_path, 16, 2, 2, **clipped)
    steps = routine.updates
    size = sum(parameter.numel() for parameter in routine.parameters() if parameter.requires_grad)
    bound = 0.1 * steps * (clip if algorithm == "norm" else clip * math.sqrt(size))
    assert max(watch.lengths) <= 1.001 * bound
    assert min(watch.lengths) > 0
    assert min(train(free, tmp_path, 16, 2, 1).lengths) > bound


def test_sample_weighting_refuses_accumulation_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches = 2: .*larger data\.batch_size"):
        train(ROUTINES["weighted"](), tmp_path, 16, 2, 1, accumulate_grad_batches=2)
