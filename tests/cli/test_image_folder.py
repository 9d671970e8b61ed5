"""Images of one's own by commands: from a folder to an export, and validation that training has seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

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
    options = {"root": str(root), "image_size": 8, "channels": 1, "augment": False, **(data or {})}
    values["data"] = {"class_path": "datamodules.ImageFolder", "init_args": options}
    values["trainer"]["limit_train_batches"] = 2
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(
        tmp_path_factory.mktemp("data") / "digits3", train=range(80), val=range(80, 130), test=range(130, 170)
    )


def test_a_folder_becomes_a_calibrated_export_with_the_names_of_its_classes(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["fit", "--config", str(config(run, "JointExits", images, warmup_epochs=1, phase_batches=1)), *QUIET])
    main(["calibrate", str(run), "--budget", "0.9", "--policy", "margin"])
    main(["test", "--config", str(run / "config.yaml"), "--point", "all", *QUIET])
    results = json.loads((run / "results.json").read_text())
    assert (results["data"], results["data_split"]["sizes"]) == ("digits3", {"train": 240, "val": 150, "test": 120})
    assert results["data_split"]["classes"] == NAMES
    main(["export", str(run), "--point", "margin-budget-0.9", "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "model.json").read_text())["labels"] == NAMES
    main(
        [
            "infer",
            str(run),
            "--point",
            "margin-budget-0.9",
            "--input",
            str(images / "test"),
            "--output",
            str(tmp_path / "o.jsonl"),
        ]
    )
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    right = np.mean([row["label"] == row["id"].split("/")[0] for row in rows])
    point = next(row for row in results["operating_points"] if row["name"] == "margin-budget-0.9")
    assert right == pytest.approx(point["accuracy"], abs=1e-6)


def test_validation_that_trained_the_backbone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_digits(tmp_path / "all", train=range(100), test=range(100, 130))
    backbone = tmp_path / "backbone"
    main(["fit", "--config", str(config(backbone, "BackboneTraining", root, {"seed": 0})), *QUIET])
    for seed in (0, 1):
        arguments = {"backbone_checkpoint": str(backbone), "warmup_epochs": 1, "phase_batches": 1}
        run = tmp_path / f"joint{seed}"
        main(["fit", "--config", str(config(run, "JointExits", root, {"seed": seed}, **arguments)), *QUIET])
        if seed == 0:
            main(["calibrate", str(run), "--budget", "0.9", "--policy", "margin"])
        else:
            printed = failure(capsys, "calibrate", str(run), "--budget", "0.9", "--policy", "margin")
            assert "validation samples trained the backbone in" in printed
            assert not (run / "calibration.json").exists()


def test_validation_cut_off_where_weights_come_from_a_file_is_said(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    import torch

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
    for name, folder in (("cut", root), ("own", images)):
        path = config(tmp_path / name, "JointExits", folder, warmup_epochs=1, phase_batches=1)
        values = yaml.safe_load(path.read_text())
        values["model"]["init_args"]["network"]["init_args"]["backbone"]["init_args"]["pretrained"] = str(
            tmp_path / "weights.pth"
        )
        path.write_text(yaml.safe_dump(values))
        main(["fit", "--config", str(path), *QUIET])
        capsys.readouterr()
        main(["calibrate", str(tmp_path / name), "--budget", "0.99", "--policy", "margin"])
        assert ("may have been trained on" in capsys.readouterr().out) == (name == "cut")
