"""Two processes train what one trains on batches of twice the size, also when the last batch is not full."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing import ProcessExitedException

from datamodules import Digits
from datamodules.samplers import Batches, EpochSampler
from eenet.gates import ConfidenceGate, UncertaintyGate
from eenet.quantization import QuantizedNetwork
from lightning_modules import DecoupledExits, JointExits, QuEE
from lightning_modules.routine import ExitRoutine
from tests._dummies import make_network, make_vit

pytestmark = pytest.mark.forks


def routine(method: str) -> ExitRoutine:
    if method == "QuEE":
        return QuEE(QuantizedNetwork(make_vit(), [1], widths=[32, 4]), budgets=[0.5])
    if method == "JointExits":
        return JointExits(make_network(gate=UncertaintyGate), warmup_epochs=1, phase_batches=3)
    return DecoupledExits(make_network(gate=ConfidenceGate), budgets=[0.5], class_weights="balanced")


def weights(method: str, folder: Path, processes: int, **arguments: Any) -> dict[str, torch.Tensor]:
    seed_everything(0, verbose=False)
    trained, data = routine(method), Digits(batch_size=256 // processes)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        default_root_dir=folder, max_epochs=1 if method == "QuEE" else 3, devices=processes, **quiet, **arguments
    )
    trainer.fit(trained, datamodule=data)
    return trained.state_dict()


@given(st.integers(4, 60), st.integers(1, 8), st.integers(1, 4))
def test_batches_of_processes_make_up_those_of_one(samples: int, batch_size: int, processes: int) -> None:
    order = list(EpochSampler(range(samples), (1, 0), seed=3))
    dealt = [Batches(EpochSampler(range(samples), (processes, rank), seed=3), batch_size) for rank in range(processes)]
    batches = [list(part) for part in dealt]
    assert len({len(part) for part in dealt} | {len(part) for part in batches}) == 1
    together = [sorted(row for part in step for row in part) for step in zip(*batches, strict=True)]
    whole = batch_size * processes
    alone = [order[start : start + whole] for start in range(0, samples, whole)]
    if whole > 1 and len(alone) > 1 and len(alone[-1]) < min(whole, 2 * processes):
        alone[-2:] = [alone[-2] + alone[-1]]
    assert together == [sorted(batch) for batch in alone]


@pytest.mark.parametrize(
    "method", ["JointExits", *(pytest.param(name, marks=pytest.mark.slow) for name in ("DecoupledExits", "QuEE"))]
)
def test_two_processes_train_the_weights_of_one(method: str, tmp_path: Path) -> None:
    alone = weights(method, tmp_path / "one", 1)
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork", find_unused_parameters=True)
    together = weights(method, tmp_path / "two", 2, strategy=strategy)
    assert together.keys() == alone.keys()
    for name, weight in alone.items():
        fitted = method == "QuEE" and name.startswith(("network.gate", "path_points"))  # fits magnify rounding
        torch.testing.assert_close(together[name], weight, rtol=1e-4, atol=1e-3 if fitted else 1e-5)


class Dies(Callback):
    """Kills a process in its second batch, as a machine without memory does.

    Args:
        rank: Which.
        note: File that says when.
    """

    def __init__(self, rank: int, note: Path) -> None:
        self.rank, self.note = rank, note

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, number: int) -> None:
        if number == 1 and trainer.global_rank == self.rank:
            self.note.write_text(str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_others(rank: int, tmp_path: Path) -> None:
    before, note = set(psutil.Process().children(recursive=True)), tmp_path / "died"
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork", find_unused_parameters=True)
    with pytest.raises(ProcessExitedException):
        weights("DecoupledExits", tmp_path, 2, strategy=strategy, callbacks=[Dies(rank, note)])
    assert time.monotonic() - float(note.read_text()) < 30
    assert not set(psutil.Process().children(recursive=True)) - before
