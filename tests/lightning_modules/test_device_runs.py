"""Whole trainings on a device of their own; see `tests._dummies.device`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from datamodules import Digits
from eenet.api.opening import build
from eenet.gates import ConfidenceGate, StoppingGate
from eenet.objectives import SelfDistillation
from eenet.quantization import QuantizedNetwork
from lightning_modules import DecoupledExits, ExitRoutine, JointExits, QuEE, WeightedExits
from tests._dummies import make_network, make_vit
from tests._dummies.device import TRAINING, Machine
from tests._dummies.text_run import write_text_config
from tests._dummies.token_run import write_config

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


def make_trainer(folder: Path, *callbacks: Callback) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"limit_train_batches": 2, "limit_test_batches": 1, "num_sanity_val_steps": 0}
    return Trainer(
        default_root_dir=folder,
        strategy=SingleDeviceStrategy(device=TRAINING, accelerator=Accelerator()),
        max_epochs=2,
        inference_mode=False,
        enable_checkpointing=False,
        callbacks=[*callbacks],
        **quiet,
        **limits,
    )


@pytest.mark.parametrize("name", ["gates", *(pytest.param(name, marks=SLOW) for name in ROUTINES if name != "gates")])
def test_a_run_stays_on_its_device(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExitRoutine, "_write_results", lambda *_: None)
    seen = Seen()
    with Machine(doubles=name == "quee"):  # its curves are kept in float64
        routine, data = ROUTINES[name](), Digits(batch_size=16, eval_batch_size=512)
        trainer = make_trainer(tmp_path, seen)
        trainer.fit(routine, datamodule=data)
        trainer.test(routine, datamodule=data, verbose=False)
    assert seen.devices == {TRAINING}
    assert 0 < routine.results["operating_points"][0]["accuracy"] < 1


@SLOW
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("DecoderThresholds", None),
        ("DecoderJointExits", None),
        ("PlanTuning", {"tuning": "lora", "plans": ["strided:2"]}),
        ("GateTraining", {"price": 5.0}),
    ],
)
def test_a_decoders_run_stays_on_its_device(method: str, arguments: dict[str, Any] | None, tmp_path: Path) -> None:
    if arguments is None:
        gate = "UncertaintyGate" if method == "DecoderJointExits" else "ConfidenceGate"
        config = yaml.safe_load(write_config(tmp_path, method, gate).read_text())
    else:
        config = yaml.safe_load(write_text_config(tmp_path, method, **arguments).read_text())
    with Machine():
        made = build({part: config[part] for part in ("model", "data")}, trains=True)
        made.model.check_data(made.data)
        trainer = make_trainer(tmp_path)
        trainer.fit(made.model, datamodule=made.data)
        trainer.test(made.model, datamodule=made.data, verbose=False)
    assert trainer.callback_metrics
