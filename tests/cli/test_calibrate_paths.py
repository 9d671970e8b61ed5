"""`eenet calibrate --budget-bitops` on a tiny run of QuEE, and `eenet test --point`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from eenet.api.opening import open_run, read_split
from eenet.calibration.chooser import Chooser
from eenet.calibration.logits import blocks
from eenet.calibration.wishes import Wishes
from eenet.cli.main import main
from eenet.files import sha256
from tests.cli.test_cli import failure


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths") / "run"
    backbone = {"name": "vit_tiny_patch16_224", "num_classes": 10, "image_size": 8, "in_channels": 1}
    backbone["overrides"] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    network = {"backbone": {"class_path": "eenet.backbones.ViT", "init_args": backbone}, "exits": [0], "widths": [8, 4]}
    model = {"network": {"class_path": "eenet.quantization.QuantizedNetwork", "init_args": network}, "budgets": [5.0]}
    config = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder),
            "max_epochs": 1,
            "limit_train_batches": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {"class_path": "lightning_modules.QuEE", "init_args": model},
        "data": {"class_path": "datamodules.Digits", "init_args": {"validation_fraction": 0.3}},
    }
    path = folder.parent / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path)])
    return folder


def test_a_budget_in_bitops_is_chosen_on_validation_and_tested(run: Path) -> None:
    main(["calibrate", str(run), "--budget-bitops", "0.9,0.12"])
    points = json.loads((run / "calibration.json").read_text())["points"]
    assert list(points) == ["budget-bitops-0.9", "budget-bitops-0.12"]
    for point in points.values():
        assert point["got"]["bitops_fraction"] <= point["asked"]["budget-bitops"]
    main(["test", "--config", str(run / "config.yaml"), "--point", "budget-bitops-0.12"])
    (row,) = json.loads((run / "results.json").read_text())["operating_points"]
    assert row["name"] == "budget-bitops-0.12"
    assert sum(row["paths"].values()) == pytest.approx(1)
    assert row["calibrated"].keys() >= {"nll", "ece"}
    assert [found["mode"] for found in row["conformal"]] == ["common", "per_exit", "per_exit_all"]
    exits = json.loads((run / "results.json").read_text())["exits"]
    assert all(exit["calibrated"]["temperature"] > 0 for exit in exits)


def test_stopping_chooses_widths_and_exits_within_a_budget_in_bitops(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["calibrate", str(run), "--policy", "stopping", "--budget-bitops", "0.12"])
    main(["test", "--config", str(run / "config.yaml"), "--point", "stopping-budget-bitops-0.12"])
    (row,) = json.loads((run / "results.json").read_text())["operating_points"]
    assert row["got"]["bitops_fraction"] <= 0.12
    assert abs(row["bitops_fraction"] - row["got"]["bitops_fraction"]) < 0.02
    assert row["chosen"]
    assert failure(capsys, "calibrate", str(run), "--policy", "stopping_recall", "--budget", "0.5").count("of one path")


@pytest.mark.slow
def test_a_run_without_predictors_gets_them_and_the_same_points(run: Path, tmp_path: Path) -> None:
    main(["calibrate", str(run), "--budget-bitops", "0.9,0.12"])
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "calibration.json").unlink()
    path = copy / "checkpoints" / "last.ckpt"
    before = torch.load(path, weights_only=True)
    fitted = [name for name in before["state_dict"] if "predictors." in name or name.endswith("_points")]
    bare = {name: torch.zeros_like(value) if name in fitted else value for name, value in before["state_dict"].items()}
    torch.save({**before, "state_dict": bare, "validated_on": None}, path)
    note = path.with_name("last.ckpt.sha256")
    note.unlink()
    main(["calibrate", str(copy), "--budget-bitops", "0.9,0.12"])
    assert sha256(path) in note.read_text()
    after = torch.load(path, weights_only=True)
    assert fitted
    for name, value in before["state_dict"].items():
        torch.testing.assert_close(after["state_dict"][name], value)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in ("eenet", "loops", "epoch", "validated_on"))
    found, expected = (json.loads((folder / "calibration.json").read_text())["points"] for folder in (copy, run))
    assert found == {name: expected[name] for name in ("budget-bitops-0.9", "budget-bitops-0.12")}


def test_a_confidence_takes_the_best_path_of_mixed_widths(run: Path) -> None:
    main(["calibrate", str(run), "--policy", "entropy", "--budget-bitops", "0.08,0.5", "--budget", "0.9"])
    calibration = json.loads((run / "calibration.json").read_text())
    found = {name: point for name, point in calibration["points"].items() if name.startswith("entropy")}
    assert list(found) == ["entropy-budget-0.9", "entropy-budget-bitops-0.08", "entropy-budget-bitops-0.5"]
    assert all(len(point["path"]) == 2 and set(point["path"]) <= {8, 4} for point in found.values())
    assert found["entropy-budget-bitops-0.08"]["got"]["bitops_fraction"] <= 0.08
    assert len(calibration["temperatures"]) == 6  # nodes: two widths at the first exit, four paths
    main(["test", "--config", str(run / "config.yaml"), "--point", ",".join(found)])
    rows = json.loads((run / "results.json").read_text())["operating_points"]
    assert [row["name"] for row in rows] == list(found)
    for row in rows:
        assert row["bitops_fraction"] == pytest.approx(row["got"]["bitops_fraction"], rel=0.3)


def test_the_best_path_is_that_of_brute_force(run: Path) -> None:
    opened = open_run(str(run))
    split = read_split(opened, "val")
    logits = torch.cat([block for _, block in blocks(split.logits)])
    network, wishes = opened.model.network, Wishes({"budget-bitops": [0.1]})
    own = next(iter(opened.model.policies().values()))
    chooser = Chooser(network, own, "max_probability", wishes, split, opened.chosen_on(len(logits)))
    point = chooser.point("budget-bitops", 0.1)
    correct, confidence = logits.argmax(-1) == split.labels[:, None], logits.softmax(-1).amax(-1)
    best = 0.0
    for path in network.tree.full:
        first, last = network.tree.along(path)
        costs = network.along(path).costs.fractions("bitops")
        for threshold in [*confidence[:, first].tolist(), 2.0]:
            stays = confidence[:, first] < threshold
            if torch.where(stays, costs[1], costs[0]).mean() <= 0.1:
                best = max(best, torch.where(stays, correct[:, last], correct[:, first]).double().mean().item())
    assert point.got["accuracy"] == pytest.approx(best)


def test_few_samples_are_said_by_path(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["calibrate", str(run), "--budget-bitops", "0.9", "--conformal", "per_exit"])
    everybody_leaves = ["--max-accuracy-drop", "99", "--policy", "max_probability"]
    main(["calibrate", str(run), *everybody_leaves, "--conformal", "per_exit"])
    own, chain = [line for line in capsys.readouterr().out.splitlines() if line.startswith("conformal per_exit")]
    assert "path 8-" in own or "path 4-" in own
    assert "exit" not in own.partition("(")[2]
    assert "exit " in chain.partition("(")[2]


def test_certificates_are_against_the_widest_path(run: Path) -> None:
    main(["calibrate", str(run), "--risk", "0.3", "--policy", "margin", "--max-accuracy-drop", "5"])
    points = json.loads((run / "calibration.json").read_text())["points"]
    opened = open_run(str(run))
    split = read_split(opened, "val")
    last = opened.model.network.tree.along((8, 8))[-1]
    logits = torch.cat([block for _, block in blocks(split.logits)])
    full = (logits[:, last].argmax(-1) == split.labels).double().mean().item()
    assert points["margin-max-accuracy-drop-5"]["got"]["accuracy"] >= full - 0.05
    assert points["margin-risk-0.3"]["got"]["accuracy"] >= full - 0.3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget-bitops", "0"], "budget-bitops = 0.0: is a fraction"),
        (["--budget", "0.5", "--policy", "random"], "policy = 'random': is for networks of one path"),
        (["--budget", "0.5", "--policy", "scheduler"], "policy = 'scheduler': is for networks of one path"),
        (["--max-disagreement", "0.5"], "max-disagreement = [0.5]: is for runs that trained exits on a decoder"),
    ],
)
def test_what_quee_cannot_do_is_refused(
    run: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", str(run), *args])
    assert message in capsys.readouterr().err


def test_a_budget_that_cannot_be_met_keeps_no_other_from_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["calibrate", str(run), "--budget-bitops", "1e-9,0.8"])
    assert "not met: budget-bitops = 1e-09: cannot be met: the cheapest setting costs" in capsys.readouterr().err
    point = json.loads((run / "calibration.json").read_text())["points"]["budget-bitops-0.8"]
    assert 0 <= point["got"]["accuracy_se"] <= 0.05
