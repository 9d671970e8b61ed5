"""Images of one's own by commands: from a folder to an export, and validation that training has seen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import eenet.runtime
from eenet.cli.main import main
from tests.cli.test_cli import QUIET, failure, tiny

NAMES = ["nought", "one", "two"]


def write_digits(root: Path, **parts: range) -> Path:
    """Images of the first three digits in the folders of their names, so many of each in each split."""
    digits = load_digits()
    for digit, name in enumerate(NAMES):
        images = digits.images[digits.target == digit]
        for part, numbers in parts.items():
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                pixels = Image.fromarray(np.rint(images[number] * 255 / 16).astype(np.uint8))
                pixels.resize((16, 16)).save(folder / f"{number:03}.png")
    return root


def config(folder: Path, method: str, root: Path, data: dict | None = None, **arguments: object) -> Path:
    """A tiny vision transformer on a folder of images."""
    path = tiny(folder.parent / f"{folder.name}.yaml", method, folder, **arguments)
    values = yaml.safe_load(path.read_text())
    model = values["model"]["init_args"]
    backbone = model["backbone"] if method == "BackboneTraining" else model["network"]["init_args"]["backbone"]
    backbone["init_args"]["num_classes"] = 3
    if method != "BackboneTraining":
        model["network"]["init_args"]["exits"] = [1]
    options = {"root": str(root), "image_size": 8, "channels": 1, "augment": False, **(data or {})}
    values["data"] = {"class_path": "datamodules.ImageFolder", "init_args": options}
    values["trainer"]["limit_train_batches"] = 2
    path.write_text(yaml.safe_dump(values))
    return path


def recorded(run: Path) -> dict:
    """The preprocessing that a run's checkpoint records."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["eenet"]["preprocessing"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(
        tmp_path_factory.mktemp("data") / "digits3", train=range(80), val=range(80, 130), test=range(130, 170)
    )


def test_a_folder_becomes_a_calibrated_export_with_the_names_of_its_classes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images are needed to calibrate and to test, and no more once the run is copied to where they are not."""
    run = tmp_path / "run"
    main(["fit", "--config", str(config(run, "JointExits", images, warmup_epochs=1, phase_batches=1)), *QUIET])
    main(["calibrate", str(run), "--budget", "0.9", "--policy", "margin"])
    main(["test", "--config", str(run / "config.yaml"), "--point", "all", *QUIET])
    results = json.loads((run / "results.json").read_text())
    assert (results["data"], results["data_split"]["sizes"]) == ("digits3", {"train": 240, "val": 150, "test": 120})
    assert results["data_split"]["classes"] == NAMES
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace(str(images), "/gone"))
    capsys.readouterr()
    assert "data.root = '/gone'" in failure(capsys, "calibrate", str(copy), "--budget", "0.9")
    main(["export", str(copy), "--point", "margin-budget-0.9", "--out", str(tmp_path / "out")])
    exported = json.loads((tmp_path / "out" / "model.json").read_text())
    assert exported["labels"] == NAMES
    small = (Image.open(path).resize((9, 9), Image.Resampling.BILINEAR) for path in images.glob("train/*/*"))
    pixels = np.stack([np.asarray(image)[:8, :8] for image in small]) / 255
    prepared = recorded(run)
    assert prepared == exported["preprocessing"] == results["data_split"]["preprocessing"]
    assert prepared["mean"] == [pytest.approx(pixels.mean(), abs=0.02)]
    assert prepared["std"] == [pytest.approx(pixels.std(), abs=0.02)]
    model = eenet.runtime.load(tmp_path / "out")
    paths = sorted(images.glob("test/*/*.png"))
    routed = model(torch.stack([model.transform(path) for path in paths]))
    main(
        [
            "infer",
            str(copy),
            "--point",
            "margin-budget-0.9",
            "--input",
            str(images / "test"),
            "--output",
            str(tmp_path / "o.jsonl"),
        ]
    )
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [NAMES[label] for label in routed.logits.argmax(-1)]
    right = np.mean([row["label"] == row["id"].split("/")[0] for row in rows])
    point = next(row for row in results["operating_points"] if row["name"] == "margin-budget-0.9")
    assert right == pytest.approx(point["accuracy"], abs=1e-6)


def test_validation_that_trained_the_backbone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_digits(tmp_path / "all", train=range(100), test=range(100, 130))
    backbone = tmp_path / "backbone"
    main(["fit", "--config", str(config(backbone, "BackboneTraining", root, {"seed": 0})), *QUIET])
    run = tmp_path / "joint"
    arguments = {"backbone_checkpoint": str(backbone), "warmup_epochs": 1, "phase_batches": 1}
    main(["fit", "--config", str(config(run, "JointExits", root, {"seed": 1}, **arguments)), *QUIET])
    printed = failure(capsys, "calibrate", str(run), "--budget", "0.9", "--policy", "margin")
    assert "validation samples trained the backbone in" in printed
    assert not (run / "calibration.json").exists()
    saved = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(saved.replace("seed: 1", "seed: 0"))  # under which samples of its own trained it
    printed = failure(capsys, "calibrate", str(run), "--budget", "0.9", "--policy", "margin")
    assert "the checkpoint was made on another split: its seed is 1" in printed
    assert not (run / "calibration.json").exists()


def test_weights_from_a_file_bring_their_preprocessing_and_may_have_seen_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=3,
            in_chans=1,
            img_size=8,
            patch_size=4,
            embed_dim=16,
            depth=4,
            num_heads=2,
        ).state_dict(),
        tmp_path / "weights.pth",
    )
    root = write_digits(tmp_path / "all", train=range(100))
    path = config(tmp_path / "cut", "JointExits", root, warmup_epochs=1, phase_batches=1)
    values = yaml.safe_load(path.read_text())
    network = values["model"]["init_args"]["network"]["init_args"]
    network["backbone"]["init_args"]["pretrained"] = str(tmp_path / "weights.pth")
    path.write_text(yaml.safe_dump(values))
    main(["fit", "--config", str(path), *QUIET])
    main(["calibrate", str(tmp_path / "cut"), "--budget", "0.99", "--policy", "margin"])
    assert "may have been trained" in capsys.readouterr().out
    prepared = recorded(tmp_path / "cut")
    assert (prepared["mean"], prepared["interpolation"], prepared["resize"]) == ([0.5], "bicubic", 8)
