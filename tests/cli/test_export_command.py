"""`eenet export`."""

import json
from pathlib import Path

import pytest
import torch

from datamodules import Digits
from eenet.api.exporting import float_point
from eenet.api.inferring import exported_of
from eenet.api.opening import chosen_point, open_run
from eenet.cli.main import main
from eenet.runtime import load
from tests.cli.test_cli import QUIET, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "joint"
    config = tiny(folder.parent / "j.yaml", "JointExits", folder, warmup_epochs=1, phase_batches=2)
    main(["fit", "--config", str(config), *QUIET])
    main(["calibrate", str(run := folder), "--budget", "0.5"])
    return run


@pytest.mark.slow
def test_a_run_is_exported_at_a_point(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    main(["export", str(run), "--out", str(out), "--point", "budget-0.5"])
    assert "eenet.load(" in capsys.readouterr().out
    runtime, opened = load(out), open_run(str(run))
    chosen = chosen_point(opened, "budget-0.5")
    inputs = torch.stack([image for image, _ in opened.data.dataset("test")])
    expected = chosen.point.network(opened.model.network).route(inputs, chosen.point.policy)
    routed = runtime(inputs)
    assert torch.equal(routed.logits, expected.logits)
    assert torch.equal(routed.exits, expected.exits)
    about = json.loads((out / "model.json").read_text())["point"]
    assert (about["name"], about["asked"]) == ("budget-0.5", {"budget": 0.5})
    assert len(about["temperatures"]) == 4


@pytest.mark.slow
def test_an_int8_file_keeps_what_it_says_of_its_point(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, opened = tmp_path / "out", open_run(str(run))
    point = ["--point", "budget-0.5"]
    main(["export", str(run), "--out", str(out), "--format", "onnx", "--int8", "--int8-samples", "64", *point])
    assert "int8: 17 layers, ranges of 64 training samples" in capsys.readouterr().out
    runtime = load(out)
    (inputs, labels), *rest = opened.data.loader("val")
    assert not rest
    routed, about = runtime(inputs), runtime.manifest.point
    accuracy = (routed.logits.argmax(-1) == labels).double().mean().item()
    fraction = routed.macs.double().mean().item() / runtime.manifest.costs.full
    assert (about["asked"], about["integers"]["samples"]) == ({"budget": 0.5}, 64)
    assert about["got"]["accuracy"] == pytest.approx(accuracy, abs=1.5 / len(labels))  # where a score is its threshold
    assert about["got"]["macs_fraction"] == pytest.approx(fraction, abs=1.5 / len(labels))
    assert about["got"]["macs_fraction"] <= 0.5
    chosen = chosen_point(opened, "budget-0.5")
    assert about["integers"]["float_got"] == float_point(about)["got"] == chosen.point.got
    assert runtime.manifest.policy["arguments"] != chosen.point.policy.arguments()
    assert exported_of(opened, chosen, out).manifest == runtime.manifest


@pytest.mark.slow
def test_an_int8_file_has_the_exits_of_its_point_alone(run: Path, tmp_path: Path) -> None:
    out, opened, name = tmp_path / "out", open_run(str(run)), "max-accuracy-drop-100-placed"
    main(["calibrate", str(run), "--max-accuracy-drop", "100", "--place"])
    main(["export", str(run), "--out", str(out), "--format", "onnx", "--int8", "--int8-samples", "64", "--point", name])
    runtime, chosen = load(out), chosen_point(opened, name)
    ((inputs, labels),) = opened.data.loader("val")
    routed, about = runtime(inputs), runtime.manifest.point
    assert about["kept"] == [0]
    assert about["integers"]["float_got"] == pytest.approx(chosen.point.got)
    assert len(about["temperatures"]) == 2
    accuracy = (routed.logits.argmax(-1) == labels).double().mean().item()
    assert about["got"]["accuracy"] == pytest.approx(accuracy, abs=1.5 / len(labels))
    assert exported_of(opened, chosen, out).manifest == runtime.manifest


def test_a_single_precision_network_without_exits_is_exported(tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    main(["fit", "--config", str(tiny(tmp_path / "b.yaml", "BackboneTraining", folder)), *QUIET])
    main(["export", str(folder), "--out", str(tmp_path / "out")])
    images = torch.stack([image for image, _ in _digits().dataset("test")])
    assert load(tmp_path / "out")(images).exits.tolist() == [0] * len(images)


def _digits() -> Digits:
    data = Digits()
    data.prepare_data()
    return data


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "pickle"], "must be one of torch, onnx"),
        (["--point", "nowhere"], "point = 'nowhere': the run has budget-0.5"),
        (["--out", "."], "exists already"),
        (["--int8"], "give --format onnx"),
        (["--format", "onnx", "--int8-samples", "64"], "are for the ranges of --int8"),
        (["--int8", "--format", "onnx", "--int8-samples", "1"], "int8-samples = 1: must be from 2"),
    ],
)
def test_mistakes_are_one_clear_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["export", str(run), "--out", str(tmp_path / "out"), *args])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_points_of_another_checkpoint_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (other / name).write_bytes((run / name).read_bytes())
    saved = json.loads((run / "calibration.json").read_text())
    (other / "calibration.json").write_text(json.dumps({**saved, "checkpoint": "0" * 64}))
    with pytest.raises(SystemExit):
        main(["export", str(other), "--out", str(tmp_path / "out"), "--point", "budget-0.5"])
    assert "another checkpoint" in capsys.readouterr().err
