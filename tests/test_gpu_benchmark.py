"""The script for a GPU, on the CPU with tiny networks."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from eenet.network import EarlyExitNetwork

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


def test_sections_check_what_they_run(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    for section in ("correctness", "features", "graphs"):
        assert gpu.main([section, "--tiny", *out]) == 0
    assert gpu.main(["table", *out]) == 0
    said = capsys.readouterr().out
    assert "correctness: ok" in said
    assert "graphs: skipped a GPU" in said
    assert "bench: not run" in said
    rows = json.loads((tmp_path / "correctness.json").read_text())["rows"]
    assert {"Threshold bfloat16", "PredictedErrors float64"} <= {row["what"] for row in rows}


def test_a_router_that_is_wrong_is_found(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    route = EarlyExitNetwork.route

    def swapped(*given: object) -> object:
        routed = route(*given)  # type: ignore[arg-type]
        return routed._replace(logits=routed.logits.roll(1, 0))

    monkeypatch.setattr(EarlyExitNetwork, "route", swapped)
    assert gpu.main(["correctness", "--tiny", "--out", str(tmp_path)]) == 1
    assert gpu.main(["table", "--out", str(tmp_path)]) == 1


def test_a_section_that_fails_loses_nothing(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tiny: bool) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setitem(gpu.SECTIONS, "bench", fail)
    gpu.main(["bench", "--out", str(tmp_path)])
    assert "bench: failed RuntimeError: out of luck" in "\n".join(gpu.table(tmp_path))


@pytest.mark.slow
def test_the_whole_script(tmp_path: Path) -> None:
    chosen = {"PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        ["sh", "benchmarks/gpu.sh", "--tiny"], cwd=ROOT, env={**os.environ, **chosen}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = {path.stem: json.loads(path.read_text())["status"] for path in tmp_path.glob("*.json")}
    assert {found[name] for name in ("correctness", "features", "jei_dnn", "bench", "decoding")} == {"ok"}
