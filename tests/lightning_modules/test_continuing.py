"""Continued runs: rates that fall to the end that is asked for, and nothing needed that the checkpoint holds."""

import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import Digits
from eenet.cli.main import main
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.quantization import QuantizedBackbone, QuantizedNetwork
from lightning_modules import BackboneTraining, DecoupledExits, ExitRoutine, JointExits, QuEE, WeightedExits
from tests._dummies import make_network, make_vit
from tests._dummies.token_run import write_config

FINAL = 2e-4


class Killed(Exception):
    """Ends a run."""


class Rates(Callback):
    """Notes the first group's learning rate before each batch, and kills the run at the second batch of an epoch."""

    def __init__(self, kill: int | None = None) -> None:
        self.kill = kill
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, routine: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.kill, 1):
            raise Killed
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(make: Callable[[], ExitRoutine], folder: Path, epochs: int, **arguments: Any) -> tuple[list[float], Any]:
    """Train for two batches an epoch, from `last.ckpt` where the folder has one; the rates and the routine."""
    seed_everything(0)
    last, rates = folder / "last.ckpt", Rates(arguments.pop("kill", None))
    keep = ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    limits = {"limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    settings: dict[str, Any] = {**quiet, **limits, "max_epochs": epochs, **arguments}
    routine = make()
    trainer = Trainer(default_root_dir=folder, callbacks=[rates, keep], **settings)
    try:
        data = Digits(batch_size=16, eval_batch_size=64)
        trainer.fit(routine, datamodule=data, ckpt_path=last if last.exists() else None)
    except Killed:
        assert rates.seen.pop() >= 0  # of the epoch that is not in the checkpoint
    return rates.seen, routine


ROUTINES: dict[str, Callable[[], ExitRoutine]] = {
    "decoupled": lambda: DecoupledExits(make_network(gate=ConfidenceGate)),
    "joint": lambda: JointExits(make_network(), warmup_epochs=1, phase_batches=2),
    "decoupled_gates": lambda: JointExits(make_network(), warmup_epochs=1, joint=False),
    "weighted": lambda: WeightedExits(make_network(gate=ConfidenceGate), weight_hidden=8),
    "quee": lambda: QuEE(QuantizedNetwork(make_vit(), [1], widths=[32, 8]), budgets=[2.0]),
}


def falling(rates: list[float]) -> bool:
    return all(later <= earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize(
    "name", [name if name == "joint" else pytest.param(name, marks=pytest.mark.slow) for name in ROUTINES]
)
def test_a_cosine_falls_to_the_new_last_epoch_or_stays_where_that_did(name: str, tmp_path: Path) -> None:
    whole, routine = fit(ROUTINES[name], tmp_path / "whole", 4)
    broken, _ = fit(ROUTINES[name], tmp_path / "same", 4, kill=2)
    shutil.copytree(tmp_path / "same", tmp_path / "more")
    shutil.copytree(tmp_path / "same", tmp_path / "fewer")
    same, again = fit(ROUTINES[name], tmp_path / "same", 4)
    assert broken + same == whole
    assert all(torch.equal(a, b) for a, b in zip(routine.parameters(), again.parameters(), strict=True))
    more, _ = fit(ROUTINES[name], tmp_path / "more", 6)
    assert len(more) == 8
    assert falling(broken + more)
    assert more[0] == whole[4]
    share = (1 + math.cos(math.pi * 5 / 6)) / (1 + math.cos(math.pi * 2 / 6))  # of what is left above the final rate
    assert more[-1] == pytest.approx(FINAL + (whole[4] - FINAL) * share)
    fewer, _ = fit(ROUTINES[name], tmp_path / "fewer", 3)
    assert fewer == whole[4:6]
    with pytest.raises(UserError, match=r"trainer\.max_epochs = 2: the checkpoint has trained for 3 epochs"):
        fit(ROUTINES[name], tmp_path / "fewer", 2)
    with pytest.warns(UserWarning, match="the schedule was over: training goes on at its final learning rate 0.0002"):
        after, _ = fit(ROUTINES[name], tmp_path / "whole", 5)
    assert after == pytest.approx([FINAL] * 2)


def make_backbone() -> ExitRoutine:
    return BackboneTraining(make_vit())


def test_a_one_cycle_falls_to_the_new_last_step(tmp_path: Path) -> None:
    whole, routine = fit(make_backbone, tmp_path / "whole", 4)
    broken, _ = fit(make_backbone, tmp_path / "same", 4, kill=2)
    for folder in ("more", "longer", "steps"):
        shutil.copytree(tmp_path / "same", tmp_path / folder)
    same, again = fit(make_backbone, tmp_path / "same", 4)
    assert broken + same == whole
    assert all(torch.equal(a, b) for a, b in zip(routine.parameters(), again.parameters(), strict=True))

    def cosine(taken: int, of: int) -> float:
        return whole[4] * (1 + math.cos(math.pi * taken / of)) / 2

    for folder, settings, steps in (
        ("more", {"epochs": 6}, 8),
        ("longer", {"epochs": 4, "limit_train_batches": 3}, 6),
        ("steps", {"epochs": 9, "max_steps": 9}, 5),
    ):
        rates, _ = fit(make_backbone, tmp_path / folder, **settings)  # type: ignore[arg-type]
        assert rates == pytest.approx([cosine(step, steps) for step in range(steps)], rel=1e-3), folder
    with pytest.raises(UserError, match=r"schedule is over and its rate 0; start anew from model\.backbone_"):
        fit(make_backbone, tmp_path / "whole", 5)


@pytest.mark.slow
def test_a_one_cycle_that_still_rises_goes_on_to_its_peak(tmp_path: Path) -> None:
    def make() -> ExitRoutine:
        return BackboneTraining(make_vit(), warmup=0.5)

    broken, _ = fit(make, tmp_path / "more", 6, kill=1)
    shutil.copytree(tmp_path / "more", tmp_path / "fewer")
    more, _ = fit(make, tmp_path / "more", 8)
    peak = more.index(max(more))
    assert 0 < peak < 6
    assert max(more) > 0.9e-3
    assert falling(more[peak:])
    assert more[-1] < 1e-4
    fewer, _ = fit(make, tmp_path / "fewer", 3)
    assert max(broken) <= fewer[0]
    assert falling(fewer[1:])
    assert fewer[-1] < max(fewer) / 4


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("joint", {"max_epochs": None, "max_steps": 8}),
        pytest.param("weighted", {"max_epochs": 9, "max_steps": 8}, marks=pytest.mark.slow),
    ],
)
def test_a_cosine_ends_with_the_steps_where_they_end_the_training(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    updates = 4 if name == "weighted" else 1
    steps = {**settings, "max_steps": settings["max_steps"] * updates}
    rates, _ = fit(ROUTINES[name], tmp_path / "steps", **{"epochs": 0, **steps})
    epochs, _ = fit(ROUTINES[name], tmp_path / "epochs", 4)
    assert rates == epochs


@pytest.mark.parametrize("name", ["joint", pytest.param("weighted", marks=pytest.mark.slow)])
def test_a_training_that_ends_inside_an_epoch_continues_at_that_epochs_rate(name: str, tmp_path: Path) -> None:
    updates = 4 if name == "weighted" else 1
    broken, _ = fit(ROUTINES[name], tmp_path, 9, max_steps=3 * updates)
    continued, _ = fit(ROUTINES[name], tmp_path, 9, max_steps=7 * updates)
    assert len(broken) == 3
    assert continued[0] == broken[-1] > continued[1]


def test_without_an_end_there_is_no_schedule(tmp_path: Path) -> None:
    for make in (ROUTINES["joint"], make_backbone):
        with pytest.raises(UserError, match=r"trainer\.max_epochs = -1: .* needs a last epoch"):
            fit(make, tmp_path, -1)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "gate"), [("DecoderThresholds", "ConfidenceGate")])
def test_a_decoders_exits_continue_from_their_rate(
    method: str, gate: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, method, gate or "UncertaintyGate")
    config = yaml.safe_load(path.read_text())
    config["trainer"]["callbacks"] = [{"class_path": f"{__name__}.Rates"}]
    path.write_text(yaml.safe_dump(config))
    seen: list[float] = []
    monkeypatch.setattr(Rates, "on_train_batch_start", lambda self, trainer, *_: seen.append(rate(trainer)))
    fitting = ["fit", "--config", str(path), "--trainer.limit_val_batches", "1", "--ckpt_path", "auto"]
    main([*fitting, "--trainer.max_epochs", "2"])
    first = len(seen)
    with pytest.warns(UserWarning, match="the schedule was over"):
        main([*fitting, "--trainer.max_epochs", "3"])
    assert seen[0] == 0.02
    assert falling(seen)
    assert seen[first:] == pytest.approx([FINAL] * (len(seen) - first))


def rate(trainer: Trainer) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]


CONTINUED: dict[str, Callable[[str], ExitRoutine]] = {
    "decoupled": lambda backbone: DecoupledExits(make_network(gate=ConfidenceGate), backbone),
    "quantized": lambda backbone: DecoupledExits(
        EarlyExitNetwork(QuantizedBackbone(make_vit(), 4), gate=ConfidenceGate), backbone
    ),
    "quee": lambda backbone: QuEE(QuantizedNetwork(make_vit(), [1], widths=[32, 8]), backbone, budgets=[2.0]),
    "backbone": lambda backbone: BackboneTraining(make_vit(), backbone),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "decoupled" else pytest.param(name, marks=pytest.mark.slow) for name in CONTINUED],
)
def test_a_continued_run_needs_neither_its_backbones_run_nor_new_ranges(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tmp_path / "backbone" / "checkpoints"
    fit(make_backbone, backbone, 1)
    weights = torch.load(backbone / "last.ckpt", weights_only=True)["state_dict"]

    def make() -> ExitRoutine:
        return CONTINUED[name](str(tmp_path / "backbone"))

    fit(make, tmp_path / "broken", 3, kill=1)
    _, whole = fit(make, tmp_path / "whole", 3)
    shutil.rmtree(tmp_path / "backbone")
    with pytest.raises(UserError, match="there is no checkpoint"):
        fit(make, tmp_path / "new", 3)
    monkeypatch.setattr(EarlyExitNetwork, "prepare", lambda self, inputs: pytest.fail("prepared again"))
    monkeypatch.setattr(QuantizedNetwork, "prepare", EarlyExitNetwork.prepare)
    _, routine = fit(make, tmp_path / "broken", 3)
    found, wanted = routine.state_dict(), whole.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    if name == "decoupled":
        assert all(torch.equal(value, weights[key]) for key, value in found.items() if "network.backbone." in key)
