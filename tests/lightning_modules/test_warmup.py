"""The warm-up: each module stops on its own, time is counted in epochs of training, and nobody judges it too early."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping as Stop
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from datamodules import Digits
from lightning_modules import JointExits
from lightning_modules.warmup import EarlyStopping
from tests._dummies import make_network


def set_weight(module: nn.Linear, value: float) -> None:
    nn.init.constant_(module.weight, value)


def test_each_module_stops_on_its_own_and_goes_back_to_its_best_weights() -> None:
    modules = [nn.Linear(1, 1), nn.Linear(1, 1)]
    stopping = EarlyStopping(2, patience=2)
    accuracies = [(0.5, 0.1), (0.6, 0.2), (0.6, 0.3), (0.4, 0.4), (0.9, 0.5)]
    for epoch, row in enumerate(accuracies):
        for module in modules:
            set_weight(module, epoch)
        stopping.update(modules, row, epoch)
        stopping.end_epoch(epoch)
        stopping.restore(modules, stopped_only=True)
        if epoch == 3:
            assert stopping.stopped == [True, False]
            assert [module.weight.item() for module in modules] == [1, 3]
    assert stopping.best == [0.6, 0.5]
    set_weight(modules[1], 9)
    stopping.restore(modules)
    assert [module.weight.item() for module in modules] == [1, 4]


@pytest.mark.parametrize(
    ("judged", "stops"), [([0, 1, 2, 3, 4], 2), ([0, 0, 0, 1, 1, 1, 2, 2, 2], 2), ([2, 5, 8], 5), ([], None)]
)
def test_patience_counts_epochs_and_not_evaluations(judged: list[int], stops: int | None) -> None:
    module, stopping = nn.Linear(1, 1), EarlyStopping(1, patience=2)
    stopped = []
    for epoch in range(9):
        for _ in range(judged.count(epoch)):
            stopping.update([module], [0.5], epoch)
        stopping.end_epoch(epoch)
        stopped += [epoch] * stopping.stopped[0]
    assert (stopped or [None])[0] == stops


def test_state_survives_a_round_trip() -> None:
    modules = [nn.Linear(1, 1)]
    first = EarlyStopping(1, patience=2)
    first.update(modules, [0.5], 0)
    first.end_epoch(0)
    first.update(modules, [0.4], 1)
    second = EarlyStopping(1, patience=2)
    second.load_state_dict(first.state_dict())
    second.end_epoch(1)
    assert second.stopped == [False]
    second.update(modules, [0.3], 2)
    second.end_epoch(2)
    assert second.stopped == [True]
    assert second.best == pytest.approx([0.5])
    assert torch.equal(second.weights[0]["weight"], first.weights[0]["weight"])


class Phases(Callback):
    """Notes the phase of each batch."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, routine: Any, *_: Any) -> None:
        self.seen.append(routine.phase)


def make_trainer(folder: Path, epochs: int, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    limits = {"limit_train_batches": 4, "limit_val_batches": 2, "enable_checkpointing": None}
    rest = {"default_root_dir": folder, "max_epochs": epochs, "callbacks": list(callbacks)}
    return Trainer(**{**quiet, **limits, **rest, **settings})


def still(**arguments: Any) -> JointExits:
    """A routine whose figures stay as they are: nothing is ever better than before."""
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=1e-9)  # noqa: E731
    return JointExits(make_network(), optimizer=sgd, final_learning_rate=0, **arguments)


def digits() -> Digits:
    return Digits(batch_size=16, eval_batch_size=64)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"val_check_interval": 0.25},
    {"check_val_every_n_epoch": 2},
    {"limit_val_batches": 0},
    {"num_sanity_val_steps": 0},
]


@pytest.mark.parametrize(
    "settings", [*(pytest.param(one, marks=pytest.mark.slow) for one in SETTINGS[::4]), *SETTINGS[1:4]], ids=str
)
def test_the_warm_up_lasts_for_epochs_of_training_however_often_they_are_judged(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    phases = Phases()
    make_trainer(tmp_path, 5, phases, **settings).fit(still(warmup_epochs=3, warmup_patience=9), datamodule=digits())
    assert phases.seen == ["warmup"] * 12 + ["gates"] * 8


@pytest.mark.slow
def test_the_warm_up_ends_when_every_module_is_out_of_patience(tmp_path: Path) -> None:
    for settings in ({}, {"val_check_interval": 0.25}):
        phases = Phases()
        routine = still(warmup_epochs=9, warmup_patience=2)
        make_trainer(tmp_path / str(len(settings)), 5, phases, **settings).fit(routine, datamodule=digits())
        assert phases.seen == ["warmup"] * 12 + ["gates"] * 8


def test_a_checkpoint_of_the_warm_up_holds_the_weights_that_were_judged(tmp_path: Path) -> None:
    """Modules go back to their best weights when the next epoch starts, not between the figures and the checkpoint."""
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="val/accuracy/exit_0", mode="max", save_top_k=-1)
    routine = JointExits(make_network(), warmup_epochs=4, warmup_patience=1)
    trainer = make_trainer(tmp_path, 6, best)
    trainer.fit(routine, datamodule=digits())
    assert len(best.best_k_models) == 6
    for path, score in best.best_k_models.items():
        judge = JointExits(make_network())
        make_trainer(tmp_path, 1).validate(judge, datamodule=digits(), ckpt_path=path, verbose=False)
        assert judge.results["exits"][0]["accuracy"] == pytest.approx(score.item())


@pytest.mark.parametrize(
    ("settings", "monitor"),
    [
        (SETTINGS[0], "val/accuracy"),
        pytest.param(SETTINGS[1], "val/macs_fraction", marks=pytest.mark.slow),
        pytest.param(SETTINGS[2], "val/nll/learned", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_callbacks_on_routed_figures_do_not_see_the_warm_up(
    monitor: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    stop = Stop(monitor, patience=1, mode="max")
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor=monitor, mode="max")
    trainer = make_trainer(tmp_path, 9, stop, best, **settings)
    watching = trainer.callbacks  # type: ignore[attr-defined]
    trainer.fit(still(warmup_epochs=3, warmup_patience=9), datamodule=digits())
    first = trainer.check_val_every_n_epoch * -(-4 // trainer.check_val_every_n_epoch)
    waits = 0 if "val_check_interval" in settings else trainer.check_val_every_n_epoch
    assert trainer.current_epoch == first + waits
    assert Path(best.best_model_path).name == f"epoch={first - 1}.ckpt"
    assert len(list(tmp_path.glob("*.ckpt"))) == 1
    assert [call for call in trainer.callbacks if call in watching] == watching  # type: ignore[attr-defined]


def test_a_callback_on_an_exits_figure_sees_the_warm_up(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 9, Stop("val/accuracy/exit_0", patience=1, mode="max"))
    trainer.fit(still(warmup_epochs=5, warmup_patience=9), datamodule=digits())
    assert trainer.current_epoch == 2


def test_a_run_that_only_warms_up_or_is_interrupted_leaves_its_callbacks_in_place(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise Killed

    for others in ([], [Kill()]):
        stop, best = Stop("val/accuracy", patience=1, mode="max"), ModelCheckpoint(tmp_path, monitor="val/accuracy")
        trainer = make_trainer(tmp_path / str(len(others)), 3, stop, best, *others)
        try:
            trainer.fit(still(warmup_epochs=5), datamodule=digits())
        except Killed:
            assert others
        assert {stop, best} <= set(trainer.callbacks)  # type: ignore[attr-defined]
        assert not best.best_model_path
        assert stop.wait_count == 0


def test_a_run_continued_from_its_warm_up_goes_on_without_being_judged(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    make_trainer(tmp_path, 2, keep).fit(still(warmup_epochs=4), datamodule=digits())
    stop = Stop("val/accuracy", patience=1, mode="max")
    trainer = make_trainer(tmp_path, 9, stop)
    trainer.fit(still(warmup_epochs=4, warmup_patience=9), datamodule=digits(), ckpt_path=tmp_path / "last.ckpt")
    assert trainer.current_epoch == 6


def test_a_training_without_validation_says_what_its_gates_lack(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="without validation batches the warm-up lasts for all warmup_epochs"):
        make_trainer(tmp_path, 1, limit_val_batches=0).fit(still(warmup_epochs=1), datamodule=digits())
