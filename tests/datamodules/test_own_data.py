"""Data that are already there: pairs and dicts, from a plain data module or from loaders, in Python and by commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

from datamodules import OwnData
from eenet.api.inferring import numbered
from eenet.api.opening import drawn, open_run
from eenet.backbones import ViT
from eenet.cli.main import main
from eenet.errors import UserError
from lightning_modules import BackboneTraining
from lightning_modules.batches import check_batch
from tests._dummies.plain_data import PlainDigits, digits
from tests.cli.test_cli import QUIET, tiny

SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def backbone() -> ViT:
    return ViT("vit_tiny_patch16_224", num_classes=10, image_size=8, in_channels=1, overrides=SMALL)


def test_a_plain_data_module_of_dicts_is_trained_calibrated_and_tested_by_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EENET_TRUST", "tests")  # a class of one's own in a run's folder
    path = tiny(tmp_path / "c.yaml", "JointExits", tmp_path / "run", warmup_epochs=1, phase_batches=1)
    values = yaml.safe_load(path.read_text())
    inner = {"class_path": "tests._dummies.plain_data.PlainDigits"}
    values["data"] = {
        "class_path": "datamodules.OwnData",
        "init_args": {"data": inner, "inputs": "pixels", "labels": "digit"},
    }
    values["trainer"]["limit_train_batches"] = 2
    path.write_text(yaml.safe_dump(values))
    main(["fit", "--config", str(path), *QUIET])
    main(["calibrate", str(tmp_path / "run"), "--budget", "0.9", "--policy", "margin"])
    main(["test", "--config", str(tmp_path / "run" / "config.yaml"), "--point", "all", *QUIET])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    network = open_run(str(tmp_path / "run")).model.network
    samples = digits(slice(500, 700))
    logits = network.backbone(torch.stack([sample["pixels"] for sample in samples]))
    right = [int(label) == sample["digit"] for label, sample in zip(logits.argmax(-1), samples, strict=True)]
    assert results["data"] == "PlainDigits"
    assert results["exits"][-1]["accuracy"] == pytest.approx(sum(right) / 200)
    chosen = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert chosen["samples"] == 300
    main(["predict", str(tmp_path / "run"), "--output", str(tmp_path / "rows.jsonl"), "--point", "margin-budget-0.9"])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    point = next(row for row in results["operating_points"] if row["name"] == "margin-budget-0.9")
    right = [int(row["label"]) == sample["digit"] for row, sample in zip(rows, samples, strict=True)]
    assert [row["id"] for row in rows] == [str(number) for number in range(200)]
    assert sum(right) / 200 == pytest.approx(point["accuracy"])
    main(["bench", str(tmp_path / "run"), "--rounds", "1", "--samples", "64", "--batch-size", "32"])
    assert json.loads((tmp_path / "run" / "bench.json").read_text())["batches"][0]["samples"] == 64


@pytest.mark.parametrize(("split", "match"), [("val", "inputs have different shapes"), ("train", "may shuffle")])
def test_what_has_no_order_or_no_shape_is_not_drawn(split: str, match: str) -> None:
    ragged = [(torch.zeros(2, length), torch.zeros(2, dtype=torch.long)) for length in (3, 4)]
    loader = DataLoader(ragged, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=match):
        drawn(OwnData(train=loader, val=loader), split, 4)


IMAGES, LABELS = torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    "batch",
    [IMAGES, (IMAGES,), (IMAGES, LABELS, LABELS), (IMAGES, LABELS[:1]), (IMAGES, [0, 0]), (IMAGES[0, 0], LABELS[0])],
)
def test_batches_that_are_no_pairs_are_refused_before_anything_is_written(batch: Any) -> None:
    data = OwnData(val=DataLoader([batch], batch_size=None), train=[1])  # type: ignore[arg-type]
    for split, match in (
        ("val", "must be pairs"),
        ("train", "may shuffle"),
        ("all", "must be one of train, val, test"),
    ):
        with pytest.raises(UserError, match=match):
            numbered(data, split, 2)


def test_what_can_be_read_once_or_holds_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="gives its val batches once"):
        OwnData(val=(pair for pair in [(IMAGES, LABELS)])).val_dataloader()
    with pytest.raises(UserError, match="holds no samples"):
        check_batch((torch.zeros(0, 1, 8, 8), LABELS[:0]), backbone())


@pytest.mark.parametrize("kind", ["pairs", "dicts"])
def test_loaders_are_trained_on_and_tested(tmp_path: Path, kind: str) -> None:
    found = digits(slice(0, 100))
    samples = found if kind == "dicts" else [(sample["pixels"], sample["digit"]) for sample in found]
    loaders = {split: DataLoader(samples, batch_size=50) for split in ("train", "val", "test")}
    data = OwnData(**loaders, **({"inputs": "pixels", "labels": "digit"} if kind == "dicts" else {}))
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, logger=False, enable_progress_bar=False, accelerator="cpu"
    )
    routine = BackboneTraining(backbone())
    with pytest.warns(UserWarning, match="has no form in a file"):
        trainer.fit(routine, data)
    trainer.test(routine, data)
    assert routine.results["data"] == "loaders"
    inputs, labels = next(iter(data.loader("val")))
    assert (inputs.shape, labels.dtype) == ((50, 1, 8, 8), torch.int64)


def test_keys_that_are_left_out_become_a_dict_of_inputs() -> None:
    batch = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "labels": torch.zeros(2)}
    inputs, labels = OwnData(train=[batch], labels="labels").pair(batch)
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert labels is batch["labels"]


def test_fingerprints_follow_the_batches() -> None:
    parts = [digits(slice(0, 60)) for _ in range(3)]
    parts[2][7]["pixels"] += 1
    keys = {"inputs": "pixels", "labels": "digit"}
    found = [OwnData(val=DataLoader(part, 20), **keys).fingerprint("val") for part in parts]
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_used_is_one_line() -> None:
    samples = digits(slice(0, 8))
    for given in ({}, {"data": PlainDigits(), "train": [1]}):
        with pytest.raises(UserError, match="give a LightningDataModule, or loaders, and not both"):
            OwnData(**given)
    with pytest.raises(UserError, match=r"data\.labels = None: name the key of the labels too"):
        OwnData(train=[1], inputs="pixels")
    with pytest.raises(UserError, match=r"data\.labels = None: a batch is a dict of pixels, id, digit"):
        next(iter(OwnData(val=DataLoader(samples)).loader("val")))
    with pytest.raises(UserError, match=r"data\.inputs = 'image': a batch is a dict of pixels, id, digit; name one"):
        next(iter(OwnData(val=DataLoader(samples), inputs="image", labels="digit").loader("val")))
    for order in (
        {"shuffle": True},
        {"sampler": SubsetRandomSampler([3, 5])},
        {"sampler": WeightedRandomSampler([1], 1)},
    ):
        with pytest.raises(UserError, match="the val loader shuffles"):
            OwnData(val=DataLoader(samples, **order)).val_dataloader()
    with pytest.raises(UserError, match="must have one loader of test batches"):
        OwnData(val=DataLoader(samples)).test_dataloader()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([[1.0, 1.0, *[0.0] * 8]] * 4), r"multi-label\) is not supported: a sample has one class"),
        (torch.zeros(4, 10), r"multi-label\) is not supported"),
        (torch.tensor([0.5, 1.0, 2.0, 3.0]), r"regression\) is not supported: a sample has one class"),
        (torch.tensor([[0.5], [1.0], [2.0], [3.0]]), r"regression\) is not supported"),
        (torch.eye(10)[:4], r"of one-hot rows, labels\.argmax\(1\) are such"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), r"labels\.long\(\) are such"),
    ],
)
def test_other_tasks_are_refused_by_name(labels: torch.Tensor, match: str) -> None:
    with pytest.raises(UserError, match=match):
        check_batch((torch.zeros(4, 1, 8, 8), labels), backbone())
