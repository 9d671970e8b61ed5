"""Points that nothing has chosen: `test` marks them, what would use them refuses, `calibrate` chooses them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import Digits
from eenet.calibration import Calibration, weights_digest
from eenet.cli.main import main
from tests.cli.test_cli import QUIET, failure, mistake, tiny

BUDGETS = [0.5, 0.75]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that overfits two batches and has therefore chosen nothing; its path has a space."""
    folder = tmp_path_factory.mktemp("some runs") / "trial"
    config = tiny(folder.parent / "t.yaml", "DecoupledExits", folder, budgets=BUDGETS)
    network = "--model.init_args.network.init_args"
    thresholds = [f"{network}.gate=eenet.gates.ConfidenceGate", f"{network}.exits=[0]"]
    main(["fit", "--config", str(config), *thresholds, "--trainer.overfit_batches=2", "--trainer.logger=true", *QUIET])
    return folder


@pytest.fixture
def run(trial: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trial, tmp_path / "a run"))


def config(run: Path) -> list[str]:
    return ["--config", str(run / "config.yaml"), f"--trainer.default_root_dir={run}", *QUIET]


def rows(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "results.json").read_text())["operating_points"]


def test_a_trial_leaves_no_scalars_of_its_points(trial: Path) -> None:
    tags = EventAccumulator(str(trial)).Reload().Tags()["scalars"]
    assert {"val/accuracy/exit_0", "val/accuracy"} <= set(tags)
    assert not [tag for tag in tags if "budget" in tag or "/routed" in tag]


def test_a_test_marks_them_and_calibrate_chooses_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", *config(run)])
    command = f"eenet calibrate '{run}' --budget 0.5,0.75"
    why = f"no whole validation has chosen it; choose points with `{command}`"
    assert rows(run) == [{"name": f"budget-{budget}", "chosen": False, "why": why} for budget in BUDGETS]
    printed = capsys.readouterr().out
    assert "budget-0.75 (not chosen)" in printed
    assert f"not chosen: budget-0.5, budget-0.75: {why}\n" in printed
    main(["calibrate", str(run), "--budget", "0.5,0.75"])
    main(["test", *config(run), "--point", "all"])
    for row, budget in zip(rows(run), BUDGETS, strict=True):
        assert row["got"]["macs_fraction"] <= budget
        assert row["chosen_on"]["samples"] == 144
        assert row["chosen_on"]["split"] == Digits().fingerprint("val")
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert row["chosen_on"]["weights"] == weights_digest(state, "network.")


def test_they_are_refused_where_they_would_be_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(run / "out")
    uses = [["export", str(run), "--out", out], ["bench", str(run)]]
    uses += [["infer", str(run), "--input", str(run), "--output", f"{out}.csv"]]
    uses += [["predict", str(run), "--output", f"{out}.csv"]]
    for args in uses:
        printed = failure(capsys, *args)
        assert "point = 'budget-0.5': is not chosen: no whole validation has chosen it; choose points with" in printed
    assert not list(run.glob("out*"))


def test_points_of_a_changed_split_or_of_an_older_version_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["calibrate", str(run), "--budget", "0.5"])
    main(["export", str(run), "--point", "budget-0.5", "--out", str(run / "out")])
    about = json.loads((run / "out" / "model.json").read_text())["point"]
    assert about["chosen_on"]["samples"] == 144
    path, fingerprint = run / "calibration.json", Digits.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "fingerprint", lambda *args, **options: fingerprint(*args, **options) + "changed")
        again = str(run / "again")
        printed = failure(capsys, "export", str(run), "--point", "budget-0.5", "--out", again)
        assert "it was chosen on another validation split" in printed
        assert "another validation split" in mistake(capsys, "test", *config(run)[:3], "--point", "all")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "schema": 1}))
    assert "is of schema 1, not 3; remove it, and `eenet calibrate` writes" in failure(
        capsys, "export", str(run), "--point", "budget-0.5", "--out", str(run / "again")
    )
    main(["calibrate", str(run), "--budget", "0.75"])
    assert list(Calibration.load(path).points) == ["budget-0.75"]


def test_a_run_is_not_calibrated_on_data_that_are_split_otherwise_by_now(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Digits.split_record
    monkeypatch.setattr(Digits, "split_record", lambda data: {**record(data), "sizes": {"train": 1200}})
    printed = failure(capsys, "calibrate", str(run), "--budget", "0.5")
    assert "data (sizes) = {'train': 1200}: the checkpoint was made on another split" in printed


@pytest.mark.slow
def test_gates_that_never_trained_are_not_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "joint"
    main(["fit", "--config", str(tiny(tmp_path / "j.yaml", "JointExits", folder, warmup_epochs=5)), *QUIET])
    for policy in ("own", "random"):
        printed = failure(capsys, "calibrate", str(folder), "--budget", "0.5", "--policy", policy)
        assert "its gates have never trained: the warm-up has not ended; choose points with" in printed
    main(["calibrate", str(folder), "--budget", "0.5", "--policy", "max_probability"])
    main(["test", *config(folder), "--point", "all"])
    assert [row["chosen"] for row in rows(folder)] == [True]
