"""Runs as folders: copied, moved, held while they train, with any logger and from any checkpoint."""

import hashlib
import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eenet.api.opening import open_run
from eenet.cli.lightning import starting_point
from eenet.cli.main import main
from eenet.errors import UserError
from eenet.runs import RunFolder
from tests.cli.test_cli import QUIET, failure, mistake, tiny

MONITOR = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {
        "monitor": "val/accuracy",
        "mode": "min",
        "filename": "epoch={epoch}",
        "auto_insert_metric_name": False,
    },
}
LOGGER = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": "runs/logs", "name": "mine", "version": 7},
}


def content(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write(path: Path, folder: str, trainer: dict[str, Any] | None = None, **arguments: object) -> Path:
    """A configuration whose paths are relative, as a user writes them."""
    values = yaml.safe_load(tiny(path, "DecoupledExits", Path(folder), **arguments).read_text())
    gate = {"class_path": "eenet.gates.ConfidenceGate"}
    values["model"]["init_args"]["network"]["init_args"]["gate"] = gate
    values["trainer"] |= trainer or {}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `runs/backbone` and `runs/exits`, which logs by a logger with names of its own."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(["fit", "--config", str(tiny(place / "b.yaml", "BackboneTraining", Path("runs/backbone"))), *QUIET])
        trainer = {"callbacks": [MONITOR], "logger": LOGGER}
        config = write(place / "e.yaml", "runs/exits", trainer, backbone_checkpoint="runs/backbone")
        main(["fit", "--config", str(config), *QUIET])
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, with another working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Path(shutil.copytree(place / "runs" / "exits", tmp_path / "copy"))


def test_a_saved_configuration_means_the_same_files_from_anywhere(place: Path) -> None:
    saved = yaml.safe_load((place / "runs" / "exits" / "config.yaml").read_text())
    assert saved["trainer"]["default_root_dir"] == "."
    assert saved["ckpt_path"] is None
    assert saved["model"]["init_args"]["backbone_checkpoint"] == str(place / "runs" / "backbone")
    assert saved["trainer"]["logger"]["init_args"]["save_dir"] == str(place / "runs" / "logs")


def test_no_logger_decides_where_checkpoints_are(place: Path) -> None:
    assert (place / "runs" / "logs" / "mine" / "version_7" / "metrics.csv").is_file()
    assert not list((place / "runs" / "logs").rglob("*.ckpt"))
    names = {path.name for path in (place / "runs" / "exits" / "checkpoints").glob("*.ckpt")}
    assert "last.ckpt" in names
    assert len(names) == 2


def test_a_copy_never_touches_the_original(place: Path, run: Path) -> None:
    original = place / "runs" / "exits"
    before, best = content(original), RunFolder(original).best
    assert RunFolder(run).best == run / "checkpoints" / best.name
    quiet = [*QUIET, "--trainer.logger=false"]
    main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path=last", "--trainer.max_epochs=3", *quiet])
    main(["test", "--config", str(run / "config.yaml"), *quiet])
    main(["calibrate", str(run), "--budget=0.6"])
    assert content(original) == before
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2
    assert RunFolder(run).best.is_relative_to(run)
    assert {"results.json", "calibration.json"} <= {path.name for path in run.iterdir()}
    assert not list(Path.cwd().iterdir())


def test_the_guard_and_last_do_not_depend_on_the_logger(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    assert "holds a run already" in mistake(capsys, "fit", "--config", str(run / "config.yaml"))
    assert content(run) == before


def test_nothing_to_continue_is_an_error_unless_it_may_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", "--config", str(write(tmp_path / "e.yaml", str(tmp_path / "runs" / "new")))]
    assert "`--ckpt_path auto` begins a new run" in mistake(capsys, *args, "--ckpt_path=last")
    assert not (tmp_path / "runs").exists()
    main([*args, "--ckpt_path=auto", "--trainer.max_epochs=1", *QUIET])
    main([*args, "--ckpt_path=auto", *QUIET])
    assert torch.load(tmp_path / "runs" / "new" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    (tmp_path / "runs" / "new" / "checkpoints" / "last.ckpt").rename(tmp_path / "runs/new/checkpoints/old.ckpt")
    assert "holds a run already" in mistake(capsys, *args, "--ckpt_path=auto")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.init_args.backbone_checkpoint=nowhere", "there is no checkpoint nowhere"),
        ("--model.init_args.budgets=[1.5]", "model.budgets = 1.5"),
    ],
)
def test_a_refused_fit_leaves_nothing(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "e.yaml", str(tmp_path / "runs" / "deep" / "new"))
    assert message in mistake(capsys, "fit", "--config", str(config), "--trainer.logger=true", option)
    assert [path.name for path in tmp_path.iterdir()] == ["e.yaml"]


def test_a_refused_continuation_leaves_the_run_as_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    args = ["--ckpt_path=last", "--model.init_args.network.init_args.exits=[0]", "--trainer.logger=true"]
    assert "exits" in mistake(capsys, "fit", "--config", str(run / "config.yaml"), *args)
    assert content(run) == before


def hold(folder: Path) -> None:
    with RunFolder(folder).training():
        time.sleep(600)


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "new"
    holding = multiprocessing.get_context("fork").Process(target=hold, args=(folder,), daemon=True)
    holding.start()
    while not (folder / ".fit.lock").exists() and holding.is_alive():
        time.sleep(0.02)
    args = ["fit", "--config", str(write(tmp_path / "e.yaml", str(folder)))]
    for option in ([], ["--ckpt_path=auto"]):
        assert "is being trained in by another process" in mistake(capsys, *args, *option)
    assert [path.name for path in folder.iterdir()] == [".fit.lock"]
    holding.kill()
    holding.join()
    main([*args, *QUIET, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"])
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_what_was_written_before_a_training_began_goes_with_its_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")

    def train(name: str, begin: bool) -> None:
        with folder.training() as training:
            (folder.path / name).mkdir()
            if begin:
                training.begin()
            with pytest.raises(UserError, match="another process"), folder.training():
                pytest.fail("two hold the folder")
            raise ValueError

    for name, begin in (("early", False), ("late", True), ("later", False)):
        with pytest.raises(ValueError):  # noqa: PT011
            train(name, begin)
        assert folder.path.exists() == (name != "early")
    assert {path.name for path in folder.path.iterdir()} - {".fit.lock"} == {"late"}


@pytest.mark.slow
def test_points_and_results_belong_to_the_best_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = RunFolder(run).best.stem
    config, quiet = str(run / "config.yaml"), [*QUIET, "--trainer.logger=false"]
    main(["calibrate", str(run), "--budget=0.6"])
    main(["calibrate", str(run), "--budget=0.7", "--ckpt_path=best"])
    assert f"--ckpt_path {run}/checkpoints/{best}.ckpt" in capsys.readouterr().out
    main(["test", "--config", config, "--ckpt_path=best", "--point=all", *quiet])
    main(["test", "--config", config, "--point=all", *quiet])
    names = {}
    for tag in ("", f".{best}"):
        results = json.loads((run / f"results{tag}.json").read_text())
        names[tag] = (results["checkpoint"], [point["name"] for point in results["operating_points"]])
        assert (run / f"accuracy_cost{tag}.png").is_file()
    assert names == {"": ("last", ["budget-0.6"]), f".{best}": (best, ["budget-0.7"])}
    out = run.parent / "exported"
    main(["export", str(run), "--out", str(out), "--point=budget-0.7", "--ckpt_path=best"])
    assert "the run has budget-0.6" in failure(capsys, "export", str(run), "--out", f"{out}2", "--point=budget-0.7")
    first, second = (open_run(str(run), checkpoint=name).model.state_dict() for name in ("best", f"{best}.ckpt"))
    saved = torch.load(run / "checkpoints" / f"{best}.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(first[name], saved[name]) and torch.equal(second[name], saved[name]) for name in saved)


def test_the_best_checkpoint_needs_one_monitor(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = failure(capsys, "bench", str(place / "runs" / "backbone"), "--ckpt_path=best")
    assert "monitored by: none" in printed
    printed = failure(capsys, "calibrate", str(place / "runs" / "exits"), "--budget=0.5", "--ckpt_path=gone.ckpt")
    assert "ckpt_path = 'gone.ckpt'" in printed


def test_results_of_two_checkpoints_are_compared_as_two_curves(run: Path) -> None:
    best, quiet = RunFolder(run).best, [*QUIET, "--trainer.logger=false"]
    for name in ("last", "best"):
        main(["test", "--config", str(run / "config.yaml"), f"--ckpt_path={name}", *quiet])
    for name, expected in (("last", "last"), ("best", best.stem)):
        main(["compare", str(run), f"--ckpt_path={name}", f"--out={run.parent / name}"])
        (curve,) = json.loads((run.parent / name / "comparison.json").read_text())["curves"]
        assert curve["groups"][0]["folders"] == [str(run)]
        assert (
            json.loads(RunFolder(run).file("results.json", RunFolder(run).checkpoint(name)).read_text())["checkpoint"]
            == expected
        )
    main(["compare", str(run), str(run / f"results.{best.stem}.json"), f"--out={run.parent / 'both'}"])
    assert len(json.loads((run.parent / "both" / "comparison.json").read_text())["curves"]) == 2


def test_where_a_training_starts(tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    for name in (None, "auto"):
        assert starting_point(folder, name, trial=False) is None
    for own in (folder, other):
        own.checkpoints.mkdir(parents=True)
        own.last.touch()
    assert starting_point(folder, "auto", trial=False) == starting_point(folder, "last", trial=False) == folder.last
    assert starting_point(RunFolder(tmp_path / "new"), str(other.last), trial=False) == other.last
    for name in (None, str(other.last)):
        with pytest.raises(UserError, match="holds a run already"):
            starting_point(folder, name, trial=False)
        assert starting_point(folder, name, trial=True) == (None if name is None else other.last)


def test_results_say_what_identifies_the_run(run: Path) -> None:
    main(["test", "--config", str(run / "config.yaml"), *QUIET, "--trainer.logger=false", "--trainer.max_epochs=9"])
    results = json.loads((run / "results.json").read_text())
    assert (results["identity"]["gate"], results["identity"]["heads"]) == ("ConfidenceGate", ["LinearHead"])
    assert results["identity"]["lambda"] is None
    fields = results["identity"]["fields"]
    given = {name: value for name, value in fields.items() if not name.startswith("model.network.backbone.")}
    assert given == {
        "model": "DecoupledExits",
        "model.network": "EarlyExitNetwork",
        "model.network.backbone": "ViT",
        "model.network.gate": "ConfidenceGate",
        "model.backbone_checkpoint": "backbone",
        "data": "Digits",
        "data.batch_size": 32,
        "trainer.max_epochs": 2,
        "trainer.limit_train_batches": 6,
    }
    assert fields["model.network.backbone.overrides.embed_dim"] == 16
