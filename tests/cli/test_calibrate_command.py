"""`eenet calibrate`, and `eenet test --point`."""

import json
from pathlib import Path

import pytest

from eenet.cli.main import main
from tests.cli.test_cli import QUIET, failure, mistake, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "joint"
    config = tiny(folder.parent / "j.yaml", "JointExits", folder, warmup_epochs=1, phase_batches=2)
    main(["fit", "--config", str(config), *QUIET])
    return folder


def test_points_are_chosen_and_tested(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["calibrate", str(run), "--budget", "0.5,0.8", "--max-accuracy-drop", "50", "--alpha", "0.1,0.2"])
    main(["calibrate", str(run), "--budget", "0.6", "--policy", "scheduler", "--risk", "0.5"])
    main(["calibrate", str(run), "--budget", "0.6", "--policy", "random"])
    assert "exchangeable" in capsys.readouterr().out
    main(["test", "--config", str(run / "config.yaml"), "--point", "all", "--per_class", "true", *QUIET])
    rows = {row["name"]: row for row in json.loads((run / "results.json").read_text())["operating_points"]}
    names = ["budget-0.5", "budget-0.8", "max-accuracy-drop-50", "scheduler-budget-0.6", "scheduler-risk-0.5"]
    assert list(rows) == [*names, "random-budget-0.6"]
    assert rows["budget-0.5"]["asked"] == {"budget": 0.5}
    assert rows["budget-0.5"]["got"]["macs_fraction"] <= 0.5
    assert rows["budget-0.8"]["macs_fraction"] == pytest.approx(0.8, abs=0.1)
    assert len(rows["budget-0.5"]["conformal"]) == 6
    assert len(rows["budget-0.5"]["per_class"]["accuracy"]) == 10
    assert rows["budget-0.5"]["calibrated"]["nll"] <= rows["budget-0.5"]["nll"] + 0.05
    exits = json.loads((run / "results.json").read_text())["exits"]
    assert all(row["calibrated"]["nll"] <= row["nll"] + 0.05 for row in exits)
    printed = capsys.readouterr().out
    assert "budget 0.5" in printed
    assert "conformal sets" in printed
    main(
        ["predict", "--config", str(run / "config.yaml"), "--point", "budget-0.5", "--return_predictions=false", *QUIET]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget", "1.5"], "budget = 1.5"),
        (["--budget", "0"], "budget = 0"),
        (["--budget", "0.01"], "cannot be met"),
        (["--budget", "a"], "numbers between commas"),
        ([], "nothing is asked for"),
        (["--budget", "0.5", "--policy", "guess"], "must be one of own"),
        (["--budget", "0.5", "--alpha", "0.0001"], "alpha = 0.0001"),
        (["--risk", "0.001", "--delta", "0.0001"], "delta = 0.0001"),
        (["--max-accuracy-drop", "-1"], "max-accuracy-drop = -1"),
        (["--max-accuracy-drop", "1", "--policy", "random"], "random routing takes"),
        (["--budget-macs", "1e15"], "budget-macs"),
    ],
)
def test_wishes_that_cannot_be_met_are_one_clear_error(
    args: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(capsys, "calibrate", str(run), *args)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "makes a run" in failure(capsys, "calibrate", str(tmp_path), "--budget", "0.5")


def test_a_validation_split_that_is_the_test_split_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules import Digits

    monkeypatch.setattr(Digits, "fingerprint", lambda *_, **__: "the same")
    assert "validation split is its test split" in failure(capsys, "calibrate", str(run), "--budget", "0.5")


def test_points_of_another_checkpoint_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["calibrate", str(run), "--budget", "0.5"])
    other = tmp_path / "other.ckpt"
    other.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes() + b"x")
    config = ["--config", str(run / "config.yaml")]
    assert "another checkpoint" in mistake(capsys, "test", *config, "--point", "all", "--ckpt_path", str(other))
    assert "point = 'nowhere'" in mistake(capsys, "test", *config, "--point", "nowhere")
    assert "eenet test" in mistake(capsys, "validate", *config, "--point", "all")
