"""Whole trainings on a device of their own; see `tests._dummies.device`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from datamodules import Digits
from eenet.gates import ConfidenceGate, StoppingGate
from eenet.objectives import SelfDistillation
from eenet.quantization import QuantizedNetwork
from lightning_modules import DecoupledExits, ExitRoutine, JointExits, QuEE, WeightedExits
from tests._dummies import make_network, make_vit
from tests._dummies.device import TRAINING, Machine

SLOW = pytest.mark.slow


class Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Take any."""


ROUTINES: dict[str, Callable[[], ExitRoutine]] = {
    "gates": lambda: JointExits(make_network(exits=[0, 2]), warmup_epochs=1, phase_batches=1, class_weights="balanced"),
    "distilled": lambda: DecoupledExits(
        make_network(gate=ConfidenceGate, boosted=True, gradient_rescaling=True),
        supervision=SelfDistillation(),
        freeze_backbone=False,
    ),
    "stopping": lambda: DecoupledExits(
        make_network(exits=[1], gate=lambda gates: StoppingGate(gates, 10)), budgets=[0.9]
    ),
    "weighted": lambda: WeightedExits(make_network(exits=[0, 2], gate=ConfidenceGate), weight_hidden=4),
    "quee": lambda: QuEE(QuantizedNetwork(make_vit(depth=2), [0], widths=[32, 4]), budgets=[5.0]),
}


class Seen(Callback):
    """Notes where a training validates."""

    def on_validation_end(self, trainer: Trainer, routine: Any) -> None:
        self.devices = {tensor.device for tensor in (*routine.network.parameters(), *routine.network.buffers())}


@pytest.mark.parametrize("name", [*(name for name in ROUTINES if name != "quee"), pytest.param("quee", marks=SLOW)])
def test_a_run_stays_on_its_device(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExitRoutine, "_write_results", lambda *_: None)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"limit_train_batches": 2, "limit_test_batches": 1, "num_sanity_val_steps": 0}
    seen = Seen()
    with Machine(doubles=name == "quee"):  # its curves are kept in float64
        routine, data = ROUTINES[name](), Digits(batch_size=16, eval_batch_size=512)
        trainer = Trainer(
            default_root_dir=tmp_path,
            strategy=SingleDeviceStrategy(device=TRAINING, accelerator=Accelerator()),
            max_epochs=2,
            inference_mode=False,
            enable_checkpointing=False,
            callbacks=[seen],
            **quiet,
            **limits,
        )
        trainer.fit(routine, datamodule=data)
        trainer.test(routine, datamodule=data, verbose=False)
    assert seen.devices == {TRAINING}
    assert 0 < routine.results["operating_points"][0]["accuracy"] < 1
