"""Names with umlauts, in locales that have them or not, without a home, and with another seed of hashes.

By default a fork gets the C locale, where text that is opened without an encoding and print are ASCII. The slow tests
start new processes, whose names of files are of that encoding too.
"""

import csv
import locale
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.survive.harness import QUIET, Ended, config, content, run

ROOT = Path(__file__).parents[2]
WORK = [
    ["fit", "--config", "obst.yaml", *QUIET],
    ["calibrate", "läufe/obst", "--budget", "0.7"],
    ["infer", "läufe/obst", "--input", "früchte", "--output", "läufe/größe.csv", "--point", "budget-0.7"],
    ["test", "--config", "läufe/obst/config.yaml", "--point", "all", *QUIET],
    ["compare", "läufe/obst", "--out", "läufe/vergleich"],
    ["export", "läufe/obst", "--out", "läufe/für alle"],
]
CLASSES = ("Äpfel", "Öl")


def prepare(place: Path, encoding: str = "utf-8") -> Path:
    """Images in folders of classes, with names in an encoding, and a configuration, which is in UTF-8."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(CLASSES * 20):
        folder = os.fsencode(place) + f"/früchte/{name}".encode(encoding)
        os.makedirs(folder, exist_ok=True)
        pixels = draw.integers(0, 255, (8, 8), dtype=np.uint8)
        with open(folder + f"/größe {number}.png".encode(encoding), "wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
        os.utime(file.name, (0, 0))
    values: dict[str, Any] = config(Path("läufe/obst"))
    backbone = values["model"]["init_args"]["network"]["init_args"]["backbone"]
    backbone["init_args"]["num_classes"] = len(CLASSES)
    values["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": "früchte", "batch_size": 4, "validation_fraction": 0.4},
    }
    (place / "obst.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return place


def ascii_and_no_home() -> None:
    locale.setlocale(locale.LC_ALL, "C")
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    os.environ.pop("HOME", None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a run was trained and calibrated, which is the working directory meanwhile."""
    place, before = prepare(tmp_path_factory.mktemp("ascii").resolve()), os.getcwd()
    os.chdir(place)
    ended = [run(args, first=ascii_and_no_home) for args in WORK[:2]]
    assert [(one.code, one.text) for one in ended if one.code or "Traceback" in one.text] == []
    yield place
    os.chdir(before)


def test_umlauts_in_ascii_without_a_home(place: Path) -> None:
    ended = run(WORK[2], first=ascii_and_no_home)
    assert (ended.code, "Traceback" in ended.text) == (0, False), ended.text
    assert "l\\xe4ufe/gr\\xf6\\xdfe.csv" in ended.text
    with Path("läufe/größe.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["id"]).parent.name for row in rows} == set(CLASSES) >= {row["label"] for row in rows}
    for path in Path("läufe").rglob("*.*"):
        if path.suffix in (".csv", ".json", ".jsonl", ".md", ".yaml"):
            path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["infer", "calibrate", pytest.param("export", marks=pytest.mark.slow)])
def test_a_copied_run_needs_its_data_only_to_calibrate(place: Path, tmp_path: Path, command: str) -> None:
    copied, point = shutil.copytree("läufe/obst", tmp_path / "obst"), ["--point", "budget-0.7"]
    moved = Path("früchte").rename(tmp_path / "anderswo")
    try:
        ended = {
            "infer": lambda: run(
                ["infer", str(copied), "--input", str(moved), "--output", str(tmp_path / "a.csv"), *point]
            ),
            "export": lambda: run(["export", str(copied), "--out", str(tmp_path / "exported"), *point]),
            "calibrate": lambda: run(["calibrate", str(copied), "--budget", "0.6"]),
        }[command]()
    finally:
        moved.rename("früchte")
    if command == "calibrate":
        assert ended.clear, ended.text
        assert f"data.root = '{place / 'früchte'}'" in ended.text
    else:
        assert ended.code == 0, ended.text


LATIN = "en_US.ISO-8859-1"
SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "C, without home": {"LC_ALL": "C", "HOME": None, "PYTHONHASHSEED": "1"},
    "UTF-8, with a home that cannot be written": {"LC_ALL": "C.UTF-8", "HOME": "/proc/self", "PYTHONHASHSEED": "2"},
    "Latin-1": {"LC_ALL": LATIN, "PYTHONHASHSEED": "3"},
}
PROGRAM = """
import sys
from itertools import groupby
from eenet.cli.main import main
for ends, words in groupby(sys.argv[1:], ";".__eq__):
    ends or main(list(words))
"""


class Usual(NamedTuple):
    """Where commands are run, what they leave in the surroundings of the tests, and a copy of the trained run."""

    place: Path
    left: dict[str, str]
    trained: Path


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Usual:
    place, before = prepare(tmp_path_factory.mktemp("usual").resolve()), os.getcwd()
    trained = place.with_name("trained")
    os.chdir(place)
    try:
        ended = [run(WORK[0])]
        shutil.copytree("läufe/obst", trained)
        ended += [run(args) for args in WORK[1:]]
    finally:
        os.chdir(before)
    assert [(one.code, one.text) for one in ended if one.code or "Traceback" in one.text] == []
    return Usual(place, content(place / "läufe"), trained)


def in_new_process(work: list[list[str]], changed: dict[str, str | None], place: Path, encoding: str) -> Ended:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changed}
    command = [sys.executable, "-c", PROGRAM, *(word.encode(encoding) for args in work for word in [*args, ";"])]
    kept = {name: value for name, value in env.items() if value is not None}
    ended = subprocess.run(command, env=kept, cwd=place, capture_output=True, check=False)
    return Ended(ended.returncode, (ended.stdout + ended.stderr).decode(encoding))


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_locale_home_and_hash_seed_change_nothing(name: str, usual: Usual, tmp_path: Path) -> None:
    encoding, changed = "latin-1" if name == "Latin-1" else "utf-8", SURROUNDINGS[name]
    if name == "Latin-1":
        make = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / LATIN)]
        if shutil.which("localedef") is None or subprocess.run(make, check=False).returncode:
            pytest.skip("there is no such locale, and it cannot be made")
        changed = {**changed, "LOCPATH": str(tmp_path)}
    shutil.rmtree(usual.place)
    prepare(usual.place, encoding)
    runs = Path(os.fsdecode(os.fsencode(usual.place) + "/läufe".encode(encoding)))
    ended = in_new_process(WORK[:1], changed, usual.place, encoding)
    assert (ended.code, "Traceback" in ended.text) == (0, False), ended.text
    weights = "checkpoints/last.ckpt"
    assert content(runs / "obst")[weights] == content(usual.trained)[weights]
    shutil.rmtree(runs)
    shutil.copytree(usual.trained, runs / "obst")
    work = WORK[1:-1] if name == "Latin-1" else WORK[1:]  # safetensors opens no path that is not UTF-8
    ended = in_new_process(work, changed, usual.place, encoding)
    assert (ended.code, "Traceback" in ended.text) == (0, False), ended.text
    found = {os.fsencode(path).decode(encoding): value for path, value in content(runs).items()}
    exported = {path for path in usual.left if path.startswith("für alle/")} if name == "Latin-1" else set()
    assert found == {path: value for path, value in usual.left.items() if path not in exported}


@pytest.mark.slow
def test_names_that_a_locale_cannot_have_are_refused_in_one_line(tmp_path: Path) -> None:
    changed: dict[str, str | None] = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = in_new_process(WORK[:1], changed, prepare(tmp_path), "utf-8")
    assert ended.clear, ended.text
    assert "PYTHONUTF8=1" in ended.text
