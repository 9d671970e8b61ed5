"""`eenet calibrate`, and `eenet test --point`."""

import json
import re
from pathlib import Path

import pytest
import torch

from eenet.api.opening import open_run, read_split, read_training
from eenet.calibration import Calibration
from eenet.calibration.chooser import Chooser
from eenet.calibration.points import CALIBRATION
from eenet.calibration.wishes import Wishes
from eenet.cli.main import main
from eenet.features import FeatureOptions
from eenet.policies import Threshold
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
    assert rows["budget-0.8"]["got"]["accuracy"] >= rows["budget-0.5"]["got"]["accuracy"]
    assert rows["budget-0.8"]["macs_fraction"] <= 0.9
    assert len(rows["budget-0.5"]["conformal"]) == 6
    assert len(rows["budget-0.5"]["per_class"]["accuracy"]) == 10
    assert rows["budget-0.5"]["calibrated"]["nll"] <= rows["budget-0.5"]["nll"] + 0.05
    exits = json.loads((run / "results.json").read_text())["exits"]
    assert all(row["calibrated"]["nll"] <= row["nll"] + 0.05 for row in exits)
    printed = capsys.readouterr().out
    assert re.search(r"MACs 50 % +│ +MACs \d\d?\.\d %", printed)  # asked and got
    assert "conformal sets" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget", "1.5"], "budget = 1.5"),
        (["--budget", "0"], "budget = 0"),
        (["--budget", "a"], "numbers between commas"),
        ([], "nothing is asked for"),
        (["--budget", "0.5", "--policy", "guess"], "must be one of own"),
        (["--budget", "0.5", "--alpha", "2"], "alpha = 2.0"),
        (["--budget", "0.5", "--conformal", "per_exits"], "conformal = 'per_exits': must be some of common"),
        (["--budget", "0.5", "--quantile", "median"], "quantile = 'median': must be one of jei_dnn, textbook"),
        (["--budget", "0.5", "--risk", "0.1", "--delta", "0"], "delta = 0.0"),
        (["--budget", "0.5", "--policy", "scheduler", "--dearest"], "dearest"),
        (["--risk", "0.1", "--policy", "geometric"], "geometric exit fractions are those of a budget"),
        (["--max-accuracy-drop", "-1"], "max-accuracy-drop = -1"),
        (["--max-accuracy-drop", "1", "--policy", "random"], "random routing takes"),
        (["--budget-macs", "1e15"], "budget-macs = 1000000000000000.0: is more than"),
    ],
)
def test_wishes_that_make_no_sense_are_one_clear_error_before_any_work(
    args: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("eenet.api.calibrating.read_split")
    assert message in failure(capsys, "calibrate", str(run), *args)


def test_a_wish_that_cannot_be_met_keeps_no_other_from_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / CALIBRATION).unlink(missing_ok=True)
    wishes = ["--budget", "0.01,0.6,0.8", "--budget-macs", "1", "--risk", "0.001", "--delta", "0.0001"]
    wishes += ["--alpha", "0.1,0.0001"]
    with pytest.raises(SystemExit, match="1"):
        main(["calibrate", str(run), *wishes])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eenet:")]
    assert "not met: budget = 0.01: cannot be met: the cheapest setting costs 0." in said[0]
    assert "not met: budget-macs = 1.0: cannot be met: the cheapest setting costs 0." in said[1]
    assert "not met: risk = 0.001: needs at least" in said[2]
    assert len(said) == 6
    assert all(f"({mode})" in line for mode, line in zip(("common", "per_exit", "per_exit_all"), said[3:], strict=True))
    points = Calibration.load(run / CALIBRATION).points
    assert list(points) == ["budget-0.6", "budget-0.8"]
    assert {alpha for _, alpha in points["budget-0.6"].conformal} == {0.1}


def test_nothing_is_written_where_nothing_is_met(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / CALIBRATION).unlink(missing_ok=True)
    with pytest.raises(SystemExit, match="1"):
        main(["calibrate", str(run), "--budget", "0.01"])
    assert not (run / CALIBRATION).exists()
    assert "cannot be met" in capsys.readouterr().err


def test_quantiles_that_had_too_few_samples_are_said_and_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--budget", "0.8", "--alpha", "0.02", "--conformal", "per_exit,per_class"]
    for rule, instead in (("jei_dnn", "all samples"), ("textbook", "whole set")):
        main(["calibrate", str(run), *asked, "--quantile", rule])
        printed = capsys.readouterr().out
        found = Calibration.load(run / CALIBRATION).points["budget-0.8"].conformal
        assert list(found) == [("per_exit", 0.02), ("per_class", 0.02)]
        assert found["per_class", 0.02].values.shape == (1, 10)
        assert [row["class"] for row in found["per_class", 0.02].fallbacks] == list(range(10))
        assert {row["instead"] for quantiles in found.values() for row in quantiles.fallbacks} == {instead}
        assert {quantiles.rule for quantiles in found.values()} == {rule}
        assert "conformal per_class, alpha 0.02: too few samples" in printed
    assert (found["per_class", 0.02].values == 1).all()
    main(["test", "--config", str(run / "config.yaml"), "--point", "all", *QUIET])
    (row,) = json.loads((run / "results.json").read_text())["operating_points"]
    assert [sets["coverage"] for sets in row["conformal"] if sets["mode"] == "per_class"] == [1.0]
    assert "per_class*" in capsys.readouterr().out


def test_a_larger_budget_is_no_less_accurate_and_dearest_spends_it(run: Path) -> None:
    main(["calibrate", str(run), "--budget", "0.5,0.75,1", "--max-accuracy-drop", "0"])
    points = Calibration.load(run / CALIBRATION).points
    got = [point.got["accuracy"] for point in points.values()]
    assert got[:3] == sorted(got[:3])
    assert got[2] >= got[3]
    share, samples = points["budget-0.5"].got["accuracy"], Calibration.load(run / CALIBRATION).samples
    assert points["budget-0.5"].got["accuracy_se"] == pytest.approx((share * (1 - share) / samples) ** 0.5)
    main(["calibrate", str(run), "--budget", "1", "--dearest"])
    again = Calibration.load(run / CALIBRATION).points["budget-1"]
    assert (points["budget-1"].asked, again.asked) == ({"budget": 1}, {"budget": 1, "dearest": 1})
    dearest = again.got
    assert dearest["macs_fraction"] >= points["budget-1"].got["macs_fraction"]
    assert dearest["accuracy"] <= points["budget-1"].got["accuracy"]


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


def test_stopping_is_fitted_to_training_samples_and_used_as_any_policy(run: Path) -> None:
    (run / CALIBRATION).unlink(missing_ok=True)
    main(
        ["calibrate", str(run), "--policy", "stopping", "--budget", "0.6", "--max-accuracy-drop", "50", "--risk", "0.5"]
    )
    main(["test", "--config", str(run / "config.yaml"), "--point", "all", *QUIET])
    rows = json.loads((run / "results.json").read_text())["operating_points"]
    assert [row["name"] for row in rows] == [
        f"stopping-{wish}" for wish in ("budget-0.6", "max-accuracy-drop-50", "risk-0.5")
    ]
    for row in rows:
        assert abs(row["macs_fraction"] - row["got"]["macs_fraction"]) < 0.1
        assert len(row["conformal"]) == 3


@torch.no_grad()
def test_what_a_point_got_is_what_is_routed(run: Path) -> None:
    opened = open_run(str(run))
    network, split = opened.model.network, read_split(opened, "val")._replace(training=read_training(opened, 2000))
    inputs, _ = zip(*opened.batches("val"), strict=True)
    wishes = Wishes({"budget": [0.6], "budget-macs": [0.6 * network.costs.full]}, modes=("common",))
    for name in ("stopping", "stopping_stateless", "stopping_recall", "geometric", "per_class"):
        chooser = Chooser(network, Threshold([0.0] * 3), name, wishes, split, opened.chosen_on(len(split.labels)))
        for wish, value in wishes:
            point = chooser.point(wish, value)
            behind = point.network(network)
            routed = [behind.route(batch, point.policy) for batch in inputs]
            assert 0.2 < point.got["macs_fraction"] <= 0.6
            macs = torch.cat([found.macs for found in routed]).double().mean().item()
            assert macs == pytest.approx(point.got["macs_fraction"] * network.costs.full)
            right = torch.cat([found.logits for found in routed]).argmax(-1) == split.labels
            assert right.double().mean().item() == pytest.approx(point.got["accuracy"])


def test_training_samples_come_from_the_store_or_the_backbone(run: Path, tmp_path: Path) -> None:
    opened = open_run(str(run))
    few = read_training(opened, 50)
    opened.model.features = FeatureOptions("disk", folder=str(tmp_path))
    torch.testing.assert_close(read_training(opened, 50), few, atol=1e-5, rtol=0)
    assert len(read_training(opened, 10**6)) == len(opened.data.dataset("train")) > 1000
    assert len(list(tmp_path.glob("*/manifest.json"))) == 1


def test_stopping_on_too_few_training_samples_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eenet.api.calibrating.read_training", lambda run, most: read_training(run, 20))
    said = failure(capsys, "calibrate", str(run), "--policy", "stopping", "--budget", "0.6")
    assert "policy = 'stopping': needs more than 35 training samples for its regressions and has 20" in said


def test_a_budget_by_the_clock_needs_a_thread(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = failure(capsys, "calibrate", str(run), "--policy", "margin", "--budget-ms", "1", "--threads", "0")
    assert "threads = 0: must be at least 1" in said
