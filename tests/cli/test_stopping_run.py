"""A run whose gate is optimal stopping: fitted at its end, tested, calibrated as any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eenet.api.opening import open_run, read_split, read_training
from eenet.calibration.logits import blocks
from eenet.calibration.stopping import find_judge, fit_stopping
from eenet.cli.main import main
from eenet.gates import StoppingGate
from tests.cli.test_cli import QUIET, failure, mistake, tiny


def write_config(path: Path, folder: Path, method: str = "DecoupledExits", **gate: Any) -> Path:
    """A configuration that trains in a second."""
    tiny(path, method, folder, **({"budgets": [0.6, 0.8]} if method == "DecoupledExits" else {}))
    config = yaml.safe_load(path.read_text())
    gate = {"class_path": "eenet.gates.StoppingGate", "init_args": {"num_classes": 10, **gate}}
    config["model"]["init_args"]["network"]["init_args"]["gate"] = gate
    path.write_text(yaml.safe_dump(config))
    return path


def test_values_are_fitted_at_the_end_of_a_training_and_used_by_its_points(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    main(["fit", "--config", str(write_config(tmp_path / "s.yaml", folder)), *QUIET])
    run = open_run(str(folder))
    gate = run.model.network.gate
    assert isinstance(gate, StoppingGate)
    logits, costs = read_training(run, 10**6), run.model.network.costs.fractions()
    split = read_split(run, "val")
    right = [block.argmax(-1) == split.labels[rows].unsqueeze(1) for rows, block in blocks(split.logits)]
    judge = find_judge(torch.cat(right))
    prices = fit_stopping(StoppingGate(gate.num_gates, 10), logits, costs, judge=judge).gates
    distances = [(gate.weight - other.weight).abs().max().item() for other in prices]
    assert min(distances) < 1e-3 * gate.weight.abs().max().item()
    assert sorted(distances)[1] > 10 * min(distances)
    main(["test", "--config", str(folder / "config.yaml"), *QUIET])
    rows = json.loads((folder / "results.json").read_text())["operating_points"]
    assert [row["name"] for row in rows] == ["budget-0.6", "budget-0.8"]
    assert all(
        row["chosen"] and row["macs_fraction"] < budget + 0.1 for row, budget in zip(rows, (0.6, 0.8), strict=True)
    )
    main(["calibrate", str(folder), "--budget", "0.6"])
    (point,) = json.loads((folder / "calibration.json").read_text())["points"].values()
    assert point["got"]["macs_fraction"] <= 0.6
    assert torch.isfinite(gate.weight).all()


def test_what_a_training_cannot_do_with_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recall = write_config(tmp_path / "r.yaml", tmp_path / "r", recall=True)
    assert "eenet calibrate --policy stopping_recall" in mistake(capsys, "fit", "--config", str(recall))
    joint = write_config(tmp_path / "j.yaml", tmp_path / "j", "JointExits")
    assert "has nothing to learn" in mistake(capsys, "fit", "--config", str(joint))
    classes = write_config(tmp_path / "c.yaml", tmp_path / "c", num_classes=9)
    assert "is made for 9 classes" in failure(capsys, "fit", "--config", str(classes), *QUIET)
