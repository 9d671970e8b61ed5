"""JEI-DNN over a statically quantized backbone, by the commands: trained, resumed, calibrated, tested and compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eenet.cli.main import main
from eenet.profile import bitops
from tests._dummies import VIT

SHALLOW = {"class_path": "eenet.backbones.ViT", "init_args": {**VIT, "overrides": VIT["overrides"] | {"depth": 2}}}


def write_config(folder: Path, model: dict[str, Any], epochs: int) -> str:
    trainer = {
        "default_root_dir": str(folder),
        "max_epochs": epochs,
        "limit_train_batches": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    data = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 64}}
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": trainer, "model": model, "data": data}))
    return str(path)


def quantized(folder: Path, name: str, width: int = 4, **arguments: Any) -> str:
    backbone = {
        "class_path": "eenet.quantization.QuantizedBackbone",
        "init_args": {"backbone": SHALLOW, "width": width},
    }
    network = {"class_path": "eenet.network.EarlyExitNetwork", "init_args": {"backbone": backbone, "exits": [0]}}
    features = {
        "class_path": "eenet.features.FeatureOptions",
        "init_args": {"store": "disk", "folder": str(folder / "f")},
    }
    model = {"network": network, "backbone_checkpoint": str(folder / "backbone"), "features": features}
    model |= {"warmup_epochs": 1, "phase_batches": 2, **arguments}
    return write_config(folder / name, {"class_path": "lightning_modules.JointExits", "init_args": model}, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    model = {"class_path": "lightning_modules.BackboneTraining", "init_args": {"backbone": SHALLOW}}
    main(["fit", "--config", write_config(folder / "backbone", model, 1)])
    main(["fit", "--config", quantized(folder, "run")])
    main(["test", "--config", str(folder / "run" / "config.yaml")])
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def test_the_float_backbones_run_is_loaded_and_its_ranges_are_kept(folder: Path) -> None:
    float_weights, found = weights(folder / "backbone"), weights(folder / "run")
    loaded = [name for name in float_weights if name.startswith("network.backbone.")]
    assert loaded
    for name in loaded:
        assert torch.equal(found[name.replace("network.backbone.", "network.backbone.backbone.")], float_weights[name])
    lowest, highest = found["network.backbone.ranges"][0].unbind(-1)
    assert (lowest < highest).all()
    assert len(list(folder.glob("f/*/manifest.json"))) == 2


def test_rows_have_the_bitops_of_their_exits(folder: Path) -> None:
    found = results(folder / "run")
    assert found["quantization"]["widths"] == [4]
    assert "float_layers" in found["quantization"]
    (first, last), (routed,) = found["exits"], found["operating_points"]
    full = found["costs"]["embed"] + sum(found["costs"]["stages"]) + found["costs"]["classifier"]
    for row in (first, last, routed):
        assert row["bitops_fraction"] == pytest.approx(row["bitops"] / bitops(full))
        assert row["bitops_fraction"] < 0.5 * row["macs_fraction"]
    assert first["bitops"] < last["bitops"]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(folder: Path) -> None:
    config = quantized(folder, "resumed")
    main(["fit", "--config", config, "--trainer.max_time", "00:00:00:00", "--trainer.min_epochs", "1"])
    last = folder / "resumed" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 0
    main(["fit", "--config", config, "--ckpt_path", "last"])
    whole, parts = weights(folder / "run"), weights(folder / "resumed")
    for name, values in whole.items():
        assert torch.equal(values, parts[name]), name


@pytest.mark.slow
def test_a_budget_in_bitops_is_chosen_on_validation_and_compared(folder: Path, capsys: pytest.CaptureFixture) -> None:
    run = folder / "run"
    main(["calibrate", str(run), "--budget-bitops", "0.3"])
    point = json.loads((run / "calibration.json").read_text())["points"]["budget-bitops-0.3"]
    assert 0 < point["got"]["bitops_fraction"] <= 0.3
    main(["test", "--config", str(run / "config.yaml"), "--point", "all"])
    (row,) = results(run)["operating_points"]
    assert row["got"] == point["got"]
    main(["test", "--config", str(folder / "backbone" / "config.yaml")])
    capsys.readouterr()
    main(["compare", str(run), str(folder / "backbone"), "--out", str(folder / "out")])
    printed = capsys.readouterr().out
    assert "BitOPs %" in printed
    assert f"{100 * row['bitops_fraction']:.2f}" in printed
    assert (folder / "out" / "accuracy_bitops.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("calibrate {folder}/run --budget-bitops 0.0001", "budget-bitops = 0.0001: cannot be met"),
        ("calibrate {folder}/run --budget-bitops 1.5", "budget-bitops = 1.5: a budget is a fraction"),
        ("fit --config {folder}/other.yaml", "holds another backbone: width 4 instead of None"),
        ("fit --config {folder}/trained.yaml", "model.network.backbone = 'QuantizedBackbone': has rounded weights"),
    ],
)
def test_what_cannot_work_is_refused(command: str, message: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    quantized(folder, "other", width=8, backbone_checkpoint=str(folder / "run"))
    model = {"class_path": "eenet.quantization.QuantizedBackbone", "init_args": {"backbone": SHALLOW}}
    model = {"class_path": "lightning_modules.BackboneTraining", "init_args": {"backbone": model}}
    write_config(folder / "trained", model, 1)
    with pytest.raises(SystemExit):
        main(command.format(folder=folder).split())
    assert message in " ".join(capsys.readouterr().err.split())
