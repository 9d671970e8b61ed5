"""Commands that need no run: help, the list of configurations, and what the machine has."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from datamodules import fashion_mnist
from eenet import __version__
from eenet.cli import checks as doctor
from eenet.cli.main import COMMANDS, LIGHTNING, main
from eenet.errors import UserError
from eenet.parsing.shipped import CONFIGS, names, with_paths

OVERLAYS = {"debug", "overfit", "profile", "ddp", "fsdp", "gpu-bf16"}


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    printed = capsys.readouterr().out
    for command in (*LIGHTNING, *COMMANDS):
        (line,) = [line.split(None, 1) for line in printed.splitlines() if line.startswith(f"  {command} ")]
        assert len(line[1]) > 10
    main([])
    assert capsys.readouterr().out == printed
    main(["--version"])
    assert capsys.readouterr().out == f"eenet {__version__}\n"


def test_help_imports_no_library() -> None:
    code = """
import sys
from contextlib import suppress
from eenet.cli.main import COMMANDS, LIGHTNING, main
for command in ([], *([name] for name in (*COMMANDS, *LIGHTNING))):
    with suppress(SystemExit):
        main([*command, "--help"])
    assert "torch" not in sys.modules, command
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("module", "function"),
    [("generate", "eenet.api.generating.generate"), ("layers", "eenet.cli.layer_study.study_layers")],
)
def test_choices_of_a_command_are_those_of_its_function(
    module: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: dict[str, Any] = {}
    room = import_module(f"eenet.cli.{module}")
    add = room.Parser.add_argument

    def note(parser: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        offered[name.lstrip("-")] = kwargs.get("type")
        return add(parser, name, *args, **kwargs)

    monkeypatch.setattr(room.Parser, "add_argument", note)
    with pytest.raises(SystemExit):
        room.main(["--help"])
    home, _, name = function.rpartition(".")
    wanted = get_type_hints(getattr(import_module(home), name))
    shared = {name: type for name, type in offered.items() if name in wanted}
    assert len(shared) > 10
    assert shared == {name: wanted[name] for name in shared}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["bench", "a", "--batch_size=1"], "batch_size = '1': is no option of `eenet bench`; did you mean batch-size?"),
        (["fitt"], "command = 'fitt': there is no such command; did you mean `eenet fit`?"),
        (["zzz"], "command = 'zzz': there is no such command; `eenet --help`"),
        (["fit", "--config", "digits/vit_jei_dn"], "did you mean digits/vit_jei_dnn?"),
        (["sweep", "--config=nowhere.yaml"], "config = 'nowhere.yaml': is no file and no shipped configuration;"),
    ],
)
def test_unknown_names_are_one_error_with_the_nearest(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    assert expected in capsys.readouterr().err


def test_names_of_configurations_become_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text("{}")
    path = str(CONFIGS / "digits" / "vit_quee.yaml")
    for name in ("digits/vit_quee", "digits/vit_quee.yaml", "configs/digits/vit_quee.yaml"):
        assert with_paths(["--config", name, f"--config={name}", "-c", name]) == [
            "--config",
            path,
            f"--config={path}",
            "-c",
            path,
        ]
    untouched = ["--config", "own.yaml", "--data", "datamodules.Digits", "--config={seed_everything: 1}", "digits/vit"]
    assert with_paths(untouched) == untouched
    assert with_paths(["--data", "nlg/alpaca"])[1] == str(CONFIGS / "nlg" / "alpaca.yaml")
    with pytest.raises(UserError, match="config = 'overlay/debug'"):
        with_paths(["--config", "overlay/debug"])


def test_list_prints_every_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    for name in names():
        (line,) = [line for line in lines if line.startswith(f"│ {name} ")]
        assert "…" not in line
        values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        if "model" in values:
            routine, data = (values[part]["class_path"].split(".")[-1] for part in ("model", "data"))
            assert {routine, data} <= set(line.split())
    assert {name.split("/")[1] for name in names() if name.startswith("overlays/")} == OVERLAYS


def test_every_configuration_has_a_run_folder_of_its_name() -> None:
    configs = {path: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*/*.yaml")}
    folders = {path: values["trainer"]["default_root_dir"] for path, values in configs.items() if "model" in values}
    assert len(set(folders.values())) == len(folders)
    assert all(folder.startswith("runs/") and folder.endswith(path.stem) for path, folder in folders.items())


def test_doctor_names_what_is_there_and_the_command_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "debian_folder", lambda: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    main(["doctor"])
    printed = capsys.readouterr().out
    rows = {
        cells[2].strip(): cells
        for cells in (line.split("│") for line in printed.splitlines())
        if len(cells) > 4 and cells[1].strip()
    }
    assert {cells[1].strip() for cells in rows.values()} <= {"yes", "no"}
    assert rows["Fashion-MNIST"][4].strip() == "apt-get install dataset-fashion-mnist"
    assert rows["transformers"][4].strip() == "pip install 'eenet[text]'"
    assert rows["SmolLM2-135M"][1].strip() == "no"
    assert {"BBC News", "MiniLM-L6", "EfficientNet-Lite0", "CUDA", "bfloat16", "VNNI", "C++ compiler"} <= rows.keys()


def test_doctor_finds_data_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in fashion_mnist.FILES:
        (tmp_path / name).touch()
    monkeypatch.setattr(doctor, "debian_folder", lambda: tmp_path)
    assert doctor.fashion_mnist() == str(tmp_path)
    assert doctor.installed("torchvision")
    assert doctor.installed("no_such_package") is None
    assert doctor.folder("no-such-package") is None
    assert doctor.folder("torchvision")
