"""`eenet calibrate --budget-bitops` on a tiny run of QuEE, and `eenet test --point`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from eenet.cli.main import main


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
    setting = points["budget-bitops-0.12"]["policy"]["arguments"]
    assert row["name"] == "budget-bitops-0.12"
    assert (row["first_width"], row["tradeoff"]) == (setting["first_width"], setting["tradeoff"])


def test_a_run_without_predictors_gets_them_and_the_same_points(run: Path, tmp_path: Path) -> None:
    main(["calibrate", str(run), "--budget-bitops", "0.9,0.12"])
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "calibration.json").unlink()
    path = copy / "checkpoints" / "last.ckpt"
    before = torch.load(path, weights_only=True)
    fitted = [name for name in before["state_dict"] if "predictors." in name or name.endswith("_points")]
    bare = {name: torch.zeros_like(value) if name in fitted else value for name, value in before["state_dict"].items()}
    torch.save({**before, "state_dict": bare, "validated_on": None}, path)
    main(["calibrate", str(copy), "--budget-bitops", "0.9,0.12"])
    after = torch.load(path, weights_only=True)
    assert fitted
    for name, value in before["state_dict"].items():
        torch.testing.assert_close(after["state_dict"][name], value)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in ("eenet", "loops", "epoch", "validated_on"))
    found, expected = (json.loads((folder / "calibration.json").read_text())["points"] for folder in (copy, run))
    assert found == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget", "0.5"], "budget = [0.5]: QuEE takes --budget-bitops"),
        (["--budget-bitops", "0"], "budget-bitops = 0.0: is a fraction"),
        (["--budget-bitops", "0.5", "--dearest"], "dearest"),
        (["--budget-bitops", "0.5", "--policy", "entropy"], "policy = 'entropy'"),
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
    assert "not met: budget-bitops = 1e-09: the cheapest operating point costs" in capsys.readouterr().err
    point = json.loads((run / "calibration.json").read_text())["points"]["budget-bitops-0.8"]
    assert 0 <= point["got"]["accuracy_se"] <= 0.05
