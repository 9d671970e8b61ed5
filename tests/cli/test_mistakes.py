"""Which exceptions are one line, and which keep their traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from eenet.cli import main as entry
from eenet.cli.lightning import EenetCLI, starting_point
from eenet.cli.mistakes import users_mistake
from eenet.errors import UserError, command
from eenet.reporting import write_json
from eenet.runs import RunFolder
from lightning_modules.checkpoints import read_checkpoint
from tests.cli.test_cli import QUIET, failure, tiny


def raised(action: object, *args: object, **options: object) -> Exception:
    """The exception of a call."""
    try:
        action(*args, **options)  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_working_folder_that_was_removed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert "the working folder was removed" in failure(capsys, "list")


def test_a_run_whose_checkpoint_is_a_link_to_another_disk_goes_on(tmp_path: Path) -> None:
    folder, kept = RunFolder(tmp_path / "run"), tmp_path / "kept.ckpt"
    folder.checkpoints.mkdir(parents=True)
    kept.touch()
    folder.last.symlink_to(kept)
    assert starting_point(folder, "last", trial=False) == folder.last
    with pytest.raises(UserError, match="holds a run already"):
        starting_point(folder, str(kept), trial=False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            "file = 'a/b': No space left on device; free some space",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "file = 'the output': No space left on device"),
        (
            OSError(errno.ENOTEMPTY, "Directory not empty", ".b.part", None, "b"),
            "file = 'b': Directory not empty; give one that can be used",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            "file = 'a/b': Permission denied; change its rights",
        ),
        (
            UnicodeEncodeError(sys.getfilesystemencoding(), "größe", 2, 3, "ordinal not in range(128)"),
            "file = 'größe': cannot be a file's name in this locale",
        ),
        (MemoryError(), "data.init_args.batch_size = '7': this machine's memory is too small"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "data.init_args.batch_size = '7': this machine's memory"),
        (
            raised(nn.Linear(2, 2).load_state_dict, {"weight": torch.zeros(2, 2)}),
            "ckpt_path = 'a.ckpt': is of another model than the configuration's: Missing key(s) in state_dict: ",
        ),
        (raised(torch.optim.SGD, [nn.Parameter(torch.zeros(1))], lr=-1), "config = None: Invalid learning rate: -1"),
    ],
)
def test_the_machines_and_the_libraries_refusals_are_the_users_mistakes(error: Exception, expected: str) -> None:
    found = users_mistake(error, ["fit", "--data.batch_size=7", "--ckpt_path", "a.ckpt"])
    assert str(found).startswith(expected)
    assert "\n" not in str(found)


CONFIGURATION = """
model:
  init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: -1}}}
trainer:
  max_epochs: 1
  callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/nothing}}]
"""


def test_what_a_library_refuses_by_its_value_is_found_in_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIGURATION)
    stopping = EarlyStopping("val/nothing")
    stopping._trainer = Trainer(logger=False)  # type: ignore[attr-defined]
    for error, expected in (
        (
            raised(torch.optim.SGD, [nn.Parameter(torch.zeros(1))], lr=-1.0),
            "model.init_args.optimizer.init_args.lr = -1: Invalid learning rate: -1.0",
        ),
        (
            raised(stopping._validate_condition_metric, {"val/loss": torch.zeros(1)}),
            "trainer.callbacks.init_args.monitor = 'val/nothing': Early stopping conditioned on metric `val/nothing`",
        ),
    ):
        assert str(users_mistake(error, ["fit", "--config", str(config)])).startswith(expected)


@pytest.mark.parametrize(
    "error",
    [
        raised(nn.Linear(2, 2), torch.zeros(3)),
        raised(torch.optim.SGD, 3),
        raised(lambda: [][1]),
        ValueError("of nobody"),
        FileNotFoundError(errno.ENOENT, "No such file", "a"),
    ],
)
def test_a_bug_is_nobodys_mistake(error: Exception) -> None:
    assert users_mistake(error, ["fit"]) is None


def test_a_bug_keeps_its_traceback_and_so_does_a_mistake_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(args: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "run", bug)
    with pytest.raises(ZeroDivisionError):
        entry.main(["fit"])
    monkeypatch.undo()
    monkeypatch.setenv("EENET_DEBUG", "1")
    with pytest.raises(UserError):
        entry.main(["fitt"])


@pytest.mark.parametrize("lightning", [False, True])
def test_an_interrupt_ends_with_its_status(lightning: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: list[str]) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if lightning:
                sys.exit(1)
            raise

    monkeypatch.setattr(entry, "run", interrupted)
    with pytest.raises(SystemExit) as end:
        entry.main(["fit"])
    assert end.value.code == 130


def test_figures_that_are_no_numbers_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match=r"results\.json: exits\[1\]\.nll = nan: is no number"):
        write_json(path, {"exits": [{"nll": 0.5}, {"nll": float("nan")}]})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "results.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "tensor", "foreign"])
def test_what_is_no_checkpoint_is_refused_before_any_work(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.ckpt"
    saved = (
        torch.zeros(1000)
        if kind == "tensor"
        else {"state_dict": {"a": torch.zeros(1000)}, "hyper_parameters": {"b": 1}}
    )
    torch.save(saved, path)
    if kind in ("text", "empty", "truncated"):
        path.write_bytes({"text": b"nonsense", "empty": b"", "truncated": path.read_bytes()[:3000]}[kind])
    with pytest.raises(UserError, match="no checkpoint of eenet"):
        read_checkpoint(path, "ckpt_path")
    config = tiny(tmp_path / "b.yaml", "BackboneTraining", tmp_path / "run")
    printed = failure(capsys, "fit", "--config", str(config), *QUIET, f"--ckpt_path={path}")
    assert f"eenet: error: ckpt_path = '{path}': is " in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("strategy", "finds"), [("auto", True), ("ddp", True), ("ddp_find_unused_parameters_false", False)]
)
def test_several_processes_may_leave_parameters_unused(strategy: str, finds: bool, tmp_path: Path) -> None:
    config = yaml.safe_load(tiny(tmp_path / "j.yaml", "JointExits", tmp_path / "run").read_text())
    trainer = {**config["trainer"], "accelerator": "cpu", "devices": 2, "strategy": strategy, "logger": False}
    cli = EenetCLI(args={"model": config["model"], "data": config["data"], "trainer": trainer}, run=False)
    assert cli.trainer.strategy._ddp_kwargs["find_unused_parameters"] is finds  # type: ignore[attr-defined]


def test_commands_are_quoted_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my run's"
    shown = command("test", "--config", folder / "config.yaml").strip("`")
    said = subprocess.run(
        ["sh", "-c", shown.replace("eenet", "printf '%s|'", 1)], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"test|--config|{folder / 'config.yaml'}|"


def test_a_mistake_in_a_process_of_its_own_needs_no_torch() -> None:
    code = (
        "import sys\nfrom eenet.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules)"
    )
    for args in (["fitt"], ["fit", "--config", "nowhere"], ["calibrate", "--config", "nowhere"]):
        ended = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stdout == "False\n"
        assert ended.stderr.count("\n") == 1
        assert ended.stderr.startswith("eenet: error: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accumulate_grad_batches", "0"),
        ("val_check_interval", "0.0"),
        ("check_val_every_n_epoch", "-1"),
        ("gradient_clip_val", "-0.5"),
    ],
)
def test_counts_that_a_trainer_divides_by_are_refused(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        entry.main(
            [
                *("fit", "--config", "digits/vit_backbone", f"--trainer.{name}", value),
                *("--trainer.default_root_dir", str(tmp_path / "run")),
            ]
        )
    assert end.value.code == 2
    assert f"eenet: error: trainer.{name} = {value}: must be " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
