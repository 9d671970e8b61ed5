"""Runs trained from Python: the folder, features, checkpoints and configuration that the command line gives too."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import eenet
from datamodules import Digits
from eenet.api.calibrating import calibrate
from eenet.cli.main import main
from eenet.described import describe
from eenet.errors import UserError
from eenet.features import FeatureOptions
from eenet.gates import ConfidenceGate, UncertaintyGate
from eenet.inference_modules import MLPHead
from eenet.network import EarlyExitNetwork
from eenet.objectives import SelfDistillation
from eenet.runs import RunFolder, training_identity
from lightning_modules import DecoupledExits, ExitRoutine, JointExits
from lightning_modules.callbacks import LastCheckpoint
from lightning_modules.training import evaluate, train
from tests._dummies import VIT, make_vit


def make_routine(**arguments: Any) -> DecoupledExits:
    network = EarlyExitNetwork(
        make_vit(), gate=lambda gates: ConfidenceGate(gates, "margin"), inference_module=lambda d, c: MLPHead(d, c, 8)
    )
    optimizer = lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9)  # noqa: E731
    return DecoupledExits(network, **{"budgets": [0.6], "optimizer": optimizer, **arguments})


def make_trainer(folder: Path, epochs: int = 1, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    return Trainer(default_root_dir=folder, max_epochs=epochs, **{**quiet, "limit_train_batches": 4, **arguments})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose logger has a folder, a name and a version of its own."""
    place = tmp_path_factory.mktemp("python")
    seed_everything(3, verbose=False)
    monitor = ModelCheckpoint(monitor="val/accuracy", filename="best")
    trainer = make_trainer(place / "run", 2, callbacks=[monitor], logger=CSVLogger(place / "logs", "mine", 7))
    trainer.fit(make_routine(features="memory"), datamodule=Digits(batch_size=32))
    return place / "run"


def test_checkpoints_lie_in_the_run_folder(run: Path) -> None:
    assert {path.name for path in (run / "checkpoints").glob("*.ckpt")} == {"last.ckpt", "best.ckpt"}
    assert not list((run.parent / "logs").rglob("*.ckpt"))
    assert RunFolder(run).best == run / "checkpoints" / "best.ckpt"


def test_an_epoch_ends_without_a_line_of_lightnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector")
    log.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, log.name):
        make_trainer(tmp_path / "run").fit(make_routine(), datamodule=Digits(batch_size=32))
    log.removeHandler(caplog.handler)
    assert RunFolder(tmp_path / "run").last.is_file()
    assert not [record for record in caplog.records if record.name == log.name]


@pytest.mark.parametrize("precision", ["64-true", pytest.param("bf16-true", marks=pytest.mark.slow)])
def test_a_run_of_another_precision_is_used_as_one_that_is_opened(precision: str, tmp_path: Path) -> None:
    quick = {"precision": precision, "limit_train_batches": 4, "accelerator": "cpu"}
    network = EarlyExitNetwork(make_vit(), gate=ConfidenceGate)
    run = train(network, Digits(), "decoupled", run=tmp_path, epochs=1, trainer=quick, budgets=[0.6])
    live = evaluate(run)
    assert live["operating_points"] == evaluate(tmp_path)["operating_points"]
    calibrate(run, [0.8])
    assert set(run.network.points) == {"budget-0.8"}


def test_the_command_line_opens_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["calibrate", str(run), "--budget=0.7"])
    main(["test", "--config", str(run / "config.yaml"), "--point=all", "--trainer.accelerator=cpu"])
    results = json.loads((run / "results.json").read_text())
    assert results["seed"] == 3
    assert [point["name"] for point in results["operating_points"]] == ["budget-0.7"]
    assert results["identity"]["fields"]["model.network.inference_module.hidden"] == 8
    assert results["identity"]["fields"]["trainer.max_epochs"] == 2


def test_features_are_read_once(tmp_path: Path) -> None:
    routine = make_routine(features="memory")
    seen: list[int] = []
    extract = routine.network.extract
    routine.network.extract = lambda inputs: (seen.append(len(inputs)), extract(inputs))[1]  # type: ignore[method-assign, func-returns-value]
    make_trainer(tmp_path, 3, limit_train_batches=1.0).fit(routine, datamodule=Digits(batch_size=32))
    assert sum(seen) == 1293 + 144 + 2  # the first sample of a split gives the layout


def test_a_run_is_not_overwritten_and_goes_on(run: Path, tmp_path: Path) -> None:
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(UserError, match="holds a run already"):
        make_trainer(run).fit(make_routine(), datamodule=Digits(batch_size=32))
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    own = RunFolder(tmp_path / "run")
    for epochs, checkpoint in ((1, None), (2, own.last)):
        trainer = make_trainer(own.path, epochs)
        trainer.fit(make_routine(), datamodule=Digits(batch_size=32), ckpt_path=checkpoint)
    assert torch.load(own.last, weights_only=True)["epoch"] == 1
    with own.training() as training:
        training.begin()
        with pytest.raises(UserError, match="another process"):
            make_trainer(own.path, 3).fit(make_routine(), datamodule=Digits(batch_size=32), ckpt_path=own.last)


def test_any_loaders_have_a_name_and_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = TensorDataset(torch.rand(60, 1, 8, 8), torch.arange(60) % 10)
    loaders = [DataLoader(data, batch_size=20) for _ in range(2)]
    routine, trainer = make_routine(), make_trainer(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"no .*config\.yaml, so that `eenet` cannot open .*: data = 'DataLoader'"):
        trainer.fit(routine, *loaders)
    trainer.test(routine, loaders[0], verbose=False)
    assert "decoupled on TensorDataset, test split" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["data"] == "TensorDataset"
    assert not (tmp_path / "run" / "config.yaml").exists()


def joint(**arguments: Any) -> JointExits:
    return JointExits(EarlyExitNetwork(make_vit(), [0, 2], boosted=True), tradeoff=0.5, **arguments)


def entropy() -> DecoupledExits:
    gate = functools.partial(ConfidenceGate, measure="entropy")
    return DecoupledExits(EarlyExitNetwork(make_vit(), gate=gate, inference_module=MLPHead), optimizer=torch.optim.SGD)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_routine(supervision=SelfDistillation(temperature=2.0)),
        lambda: joint(optimizer=functools.partial(torch.optim.AdamW, lr=0.02)),
        lambda: joint(optimizer=lambda params: torch.optim.Adam(params, lr=0.02, betas=(0.8, 0.9))),
        lambda: joint(features=FeatureOptions("disk", folder="kept")),
        entropy,
    ],
)
def test_a_described_routine_is_built_again(make: Callable[[], ExitRoutine]) -> None:
    routine = make()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ExitRoutine, "model")
    written = yaml.safe_load(yaml.safe_dump({"model": describe(routine)}))
    again = parser.instantiate_classes(parser.parse_object(written)).model
    assert describe(again) == describe(routine)
    optimizers = [built.optimizer([torch.nn.Parameter(torch.zeros(1))]) for built in (routine, again)]
    first, second = (optimizer.defaults for optimizer in optimizers)
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in second.items()} == first


def test_what_has_no_form_in_a_file_is_named() -> None:
    class Local(UncertaintyGate):
        pass

    with pytest.raises(UserError, match=r"Local': cannot be imported"):
        describe(EarlyExitNetwork(make_vit(), gate=Local))
    routine = make_routine()
    routine.__dict__["_given"] = ((routine.network,), {"budgets": torch.zeros(1)})
    with pytest.raises(UserError, match=r"budgets = 'Tensor': an argument of DecoupledExits"):
        describe(routine)
    assert describe(make_vit())["init_args"] == VIT


def test_callbacks_that_change_a_training_are_part_of_what_it_is() -> None:
    watching = [ModelCheckpoint(), LearningRateMonitor(), RichProgressBar(), LastCheckpoint()]
    settings: dict[str, Any] = {"logger": False, "accelerator": "cpu"}
    assert training_identity(Trainer(callbacks=watching, enable_model_summary=True, **settings)) == {}
    acting = [EMAWeightAveraging(), EarlyStopping("val/accuracy"), *watching]
    found = training_identity(Trainer(callbacks=acting, gradient_clip_algorithm="value", **settings))
    assert found == {
        "trainer.gradient_clip_algorithm": "value",
        "trainer.callbacks": ["EMAWeightAveraging", "EarlyStopping"],
    }
    assert type(found["trainer.gradient_clip_algorithm"]) is str  # a checkpoint holds no other


def test_training_and_testing_say_nothing_that_nobody_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    network = EarlyExitNetwork(make_vit(), gate=ConfidenceGate)
    trained = eenet.train(
        network, Digits(batch_size=128), "decoupled", run=tmp_path / "run", epochs=1, features="memory"
    )
    eenet.evaluate(trained)
    said = [str(warning.message) for warning in recwarn] + [record.getMessage() for record in caplog.records]
    assert not [line for line in said if "logger=True" in line or "eval mode" in line]
    with caplog.at_level(logging.INFO):
        shown = [logging.getLogger(f"lightning.{part}.utilities.rank_zero") for part in ("pytorch", "fabric")]
        record = logging.LogRecord("", logging.INFO, "", 0, "💡 Tip: buy something", None, None)
        assert not any(logger.filter(record) for logger in shown)
