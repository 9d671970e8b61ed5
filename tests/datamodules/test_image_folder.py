"""Images of one's own: what is a split, what is a class, and what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolder
from eenet.errors import UserError
from eenet.images import UnreadableImage, read_image


def write(folder: Path, count: int, level: int = 100) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (10, 12), (level, number, 0)).save(folder / f"{number}.png")


def write_split(root: Path, **parts: int) -> Path:
    """Folders of the classes `cat` and `dog` in each split, so many images in each."""
    for part, count in parts.items():
        for level, name in enumerate(("dog", "cat")):
            write(root / part / name, count, 100 + level)
    return root


def data(root: object, **options: object) -> ImageFolder:
    return ImageFolder(str(root), image_size=8, **options)


def sizes(found: ImageFolder) -> dict[str, int]:
    return found.split_record()["sizes"]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_splits_are_used_as_they_are_called(tmp_path: Path, val: str) -> None:
    found = data(write_split(tmp_path / "pets", train=5, test=2, **{val: 3}))
    assert (found.name, found.class_names, sizes(found)) == (
        "pets",
        ["cat", "dog"],
        {"train": 10, "val": 6, "test": 4},
    )
    assert found.split_record()["cut"] == []
    for split, folder in (("train", "train"), ("val", val), ("test", "test")):
        own = found.dataset(split)
        names = [Path(own.inputs.names[row]).relative_to(tmp_path / "pets").parts for row in own.rows]
        assert {name[0] for name in names} == {folder}
        assert [name[1] for name in names] == [found.class_names[label] for label in own.labels]
    inputs, labels = next(iter(found.train_dataloader()))
    assert (inputs.shape, inputs.dtype, labels.dtype) == ((10, 3, 8, 8), torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("parts", "cut", "expected"),
    [
        ({"train": 50, "val": 3}, ["test"], {"train": 80, "val": 6, "test": 20}),
        ({"train": 50, "test": 3}, ["val"], {"train": 90, "val": 10, "test": 6}),
        ({"train": 50}, ["val", "test"], {"train": 72, "val": 8, "test": 20}),
    ],
)
def test_a_missing_split_is_cut_from_training_images_alone(
    tmp_path: Path, parts: dict[str, int], cut: list[str], expected: dict[str, int]
) -> None:
    found = data(write_split(tmp_path, **parts))
    assert (sizes(found), found.split_record()["cut"]) == (expected, cut)
    for split in cut:
        own = found.dataset(split)
        assert all("/train/" in name for name in own.inputs.names[own.rows])
        assert np.bincount(own.labels).tolist() == [expected[split] // 2] * 2


def test_a_flat_folder_is_cut_three_ways_even_with_a_class_called_test(tmp_path: Path) -> None:
    for name in ("bus", "car", "test"):
        write(tmp_path / name, 20)
    found = data(tmp_path)
    assert (found.class_names, sizes(found)) == (["bus", "car", "test"], {"train": 43, "val": 5, "test": 12})
    rows = np.concatenate([found.dataset(split).rows for split in ("train", "val", "test")])
    assert sorted(rows) == list(range(60))


def test_nested_hidden_and_stray_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, train=4, val=2, test=2)
    write(tmp_path / "train" / "cat" / "2024" / "may", 3)
    write(tmp_path / "train" / ".cache", 3)
    write(tmp_path / "train" / "cat" / "__MACOSX", 3)
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train" / "cat")
    for name in ("train/.DS_Store", "train/cat/._0.png", "train/cat/Thumbs.db", "train/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    said: list[str] = []
    monkeypatch.setattr("datamodules.folder.rank_zero_info", said.append)
    assert sizes(data(tmp_path)) == {"train": 11, "val": 4, "test": 4}
    assert "passed over train/cat/Thumbs.db, train/notes.txt" in said[0]
    assert not any(".DS_Store" in line or "._0" in line for line in said)


def test_a_class_missing_in_one_split_is_said(tmp_path: Path) -> None:
    write_split(tmp_path, train=4, val=2)
    write(tmp_path / "test" / "cat", 2)
    with pytest.warns(UserWarning, match="test has no images of class dog"):
        assert sizes(data(tmp_path))["test"] == 2


def refused(root: object, match: str, **options: object) -> None:
    with pytest.raises(UserError, match=match):
        data(root, **options).prepare_data()


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"data\.root = '.*nowhere': is no folder or table, nor a data set")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has to hold train, val and test")
    write(tmp_path / "one" / "cat", 5)
    refused(tmp_path / "one", "has one class, cat; two are the least")
    refused(write_split(tmp_path / "no_train", val=2, test=2), "test, val and no train to learn from")
    refused(write_split(tmp_path / "twice", train=4, val=2, valid=2), "has val and valid, both for val; keep one")
    write(write_split(tmp_path / "more", train=4, val=2) / "val" / "cow", 1)
    refused(tmp_path / "more", "more/val': the class cow is not among the 2 classes cat, dog")
    (write_split(tmp_path / "hollow", train=4) / "train" / "cow").mkdir()
    refused(tmp_path / "hollow", "hollow/train/cow': is the folder of a class and holds no images")
    write(write_split(tmp_path / "unlabelled", train=4) / "test", 2)
    refused(tmp_path / "unlabelled", "unlabelled/test': has to hold one folder per class.*`eenet infer`")
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path / "notes.txt", "must be a folder, or a table that ends in .csv")
    for classes in (["cat"], ["cat", "cat"]):
        refused(tmp_path, "at least 2 different classes", classes=classes)


def test_a_class_list_gives_the_order_and_is_kept_to(tmp_path: Path) -> None:
    write_split(tmp_path, train=4, val=2, test=2)
    found = data(tmp_path, classes=["dog", "cat"])
    assert found.dataset("val").labels.tolist() == [1, 1, 0, 0]
    refused(tmp_path, "has no images of class bird to learn from", classes=["bird", "cat", "dog"])
    refused(tmp_path, "the class cat is not among", classes=["bird", "dog"])


def test_unreadable_images_end_the_run_or_are_left_out_and_listed(tmp_path: Path) -> None:
    write_split(tmp_path, train=5, val=2, test=2)
    (tmp_path / "train/cat/0.png").write_bytes(b"no image")
    half = tmp_path / "val/dog/1.png"
    half.write_bytes(half.read_bytes()[:45])
    with pytest.raises(UserError, match=r"train/cat/0\.png'.*not a readable image"):
        next(iter(data(tmp_path).train_dataloader()))
    found = data(tmp_path, unreadable="skip")
    with pytest.warns(UserWarning, match=r"0\.png: not a readable image"):
        assert sizes(found) == {"train": 9, "val": 3, "test": 4}
    assert found.split_record()["skipped"] == ["train/cat/0.png", "val/dog/1.png"]
    assert sum(len(labels) for _, labels in found.loader("val")) == 3


def test_the_fingerprint_follows_the_files_and_the_record_their_names(tmp_path: Path) -> None:
    write_split(tmp_path / "a", train=4, val=2, test=2)
    before, record = data(tmp_path / "a").fingerprint("val"), data(tmp_path / "a").split_record()
    assert data(tmp_path / "a").fingerprint("val") == before
    (tmp_path / "a/val/cat/1.png").write_bytes((tmp_path / "a/val/cat/1.png").read_bytes() + b"\0")
    assert data(tmp_path / "a").fingerprint("val") != before
    assert data(tmp_path / "a").split_record() == record
    (tmp_path / "a/val/cat/1.png").rename(tmp_path / "a/val/cat/7.png")
    changed = data(tmp_path / "a").split_record()["digest"]
    assert [split for split in changed if changed[split] != record["digest"][split]] == ["val"]


TABLES = ["csv", "tsv", "jsonl", "parquet", "cells"]


def write_table(root: Path, kind: str, rows: list[dict]) -> Path:
    path = root / f"pets.{'parquet' if kind == 'cells' else kind}"
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        if kind == "cells":
            rows = [{**row, "path": {"bytes": (root / row["path"]).read_bytes(), "path": None}} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    write(tmp_path / "all", 24)
    splits = ["train"] * 12 + ["validation"] * 6 + ["test"] * 6
    return [{"path": f"all/{n}.png", "label": ("10", "9")[n % 2], "split": splits[n]} for n in range(24)]


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_paths_and_of_encoded_images(tmp_path: Path, rows: list[dict], kind: str) -> None:
    found = data(write_table(tmp_path, kind, rows))
    assert (found.name, found.class_names) == ("pets", ["9", "10"])
    assert sizes(found) == {"train": 12, "val": 6, "test": 6}
    greens = [round(255 * (image[1].mean().item() * 0.224 + 0.456)) for image, _ in found.dataset("val")]
    assert greens == list(range(12, 18))
    assert found.dataset("val").labels.tolist() == [1, 0] * 3
    for row in rows:
        del row["split"]
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "all").symlink_to(tmp_path / "all")
    assert sizes(data(write_table(tmp_path / "flat", kind, rows))) == {"train": 17, "val": 2, "test": 5}


def test_a_regression_in_a_table_of_text_is_refused(tmp_path: Path, rows: list[dict]) -> None:
    targets = [{**row, "label": f"{place % 3}.5"} for place, row in enumerate(rows)]
    table = write_table(tmp_path, "csv", targets)
    refused(table, r"data\.label = 0\.5: .*regression is not supported")
    named = data(table, classes=["0.5", "1.5", "2.5"])
    assert sizes(named) == {"train": 12, "val": 6, "test": 6}


def test_wrong_tables_are_refused_in_one_line(tmp_path: Path, rows: list[dict]) -> None:
    def changed(match: str, row: int, **values: object) -> None:
        kind = "jsonl"
        refused(write_table(tmp_path, kind, [*rows[:row], {**rows[row], **values}, *rows[row + 1 :]]), match)

    changed(r"1 of its 24 files are missing: .*all/99\.png", 3, path="all/99.png")
    changed(r"all/2\.png': is named in rows 2 and 20", 20, path="./all/2.png")
    changed("has no label in row 5", 5, label=None)
    changed("there is no path in row 5", 5, path=None)
    changed("data.split = 'dev': .*no known split", 5, split="dev")
    changed("regression is not supported", 0, label=0.5)
    changed("one class per image is supported", 0, label=["9", "10"])
    changed("the class 11 is not among the 2 classes", 20, label="11")
    refused(write_table(tmp_path, "csv", [{"a": 1, "b": 2}]), r"data\.image = None: .*has the columns a, b")
    (tmp_path / "damaged.jsonl").write_text("{")
    refused(tmp_path / "damaged.jsonl", "is no table in UTF-8")
    rows[3]["path"] = "all/99.png"
    with pytest.warns(UserWarning, match=r"all/99\.png: not a readable image"):
        assert sizes(data(write_table(tmp_path, "csv", rows), unreadable="skip"))["train"] == 11


def test_hugging_face_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "all", 12)
    names = datasets.ClassLabel(names=["dog", "cat"])
    features = datasets.Features({"picture": datasets.Image(), "label": names})

    def table(numbers: range) -> object:
        paths = [str(tmp_path / "all" / f"{n}.png") for n in numbers]
        return datasets.Dataset.from_dict({"picture": paths, "label": [n % 2 for n in numbers]}, features)

    saved = datasets.DatasetDict(
        {"train": table(range(6)), "validation": table(range(6, 8)), "test": table(range(8, 12))}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, part in saved.items():
        part.to_parquet(str(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"))
    for folder in ("saved", "hub"):
        found = data(tmp_path / folder, image="picture")
        assert (found.class_names, sizes(found)) == (["dog", "cat"], {"train": 6, "val": 2, "test": 4})
        greens = [round(255 * (image[1].mean().item() * 0.224 + 0.456)) for image, _ in found.dataset("test")]
        assert (greens, found.dataset("test").labels.tolist()) == ([8, 9, 10, 11], [0, 1, 0, 1])
        assert data(tmp_path / folder, image="picture").fingerprint("val") == found.fingerprint("val")
    refused(tmp_path / "saved", r"data\.image = None: .*picture, label")
    refused("no_such/data_set", r"data\.root = 'no_such/data_set': .*data\.init_args\.download: true")


LEVELS = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
EIGHT = np.rint(LEVELS * 255).astype(np.uint8)
COLOUR = np.stack([EIGHT, 255 - EIGHT, EIGHT // 2], -1)
KINDS = {
    "grey.png": (Image.fromarray(EIGHT), EIGHT[..., None].repeat(3, -1)),
    "rgba.png": (Image.fromarray(np.concatenate([COLOUR, EIGHT[..., None]], -1)), COLOUR),
    "palette.png": (Image.fromarray(COLOUR).quantize(48), COLOUR),
    "cmyk.tif": (
        Image.merge("CMYK", [Image.fromarray(255 - COLOUR[..., c]) for c in range(3)] + [Image.new("L", (8, 6))]),
        COLOUR,
    ),
    "bits.png": (Image.fromarray(EIGHT > 127), (EIGHT > 127)[..., None].repeat(3, -1) * 255),
    "sixteen.png": (Image.fromarray(np.rint(LEVELS * 65535).astype(np.uint16)), EIGHT[..., None].repeat(3, -1)),
    "sixteen.tif": (Image.fromarray(np.rint(LEVELS * 65535).astype(np.uint16)), EIGHT[..., None].repeat(3, -1)),
    "float.tif": (Image.fromarray(LEVELS), EIGHT[..., None].repeat(3, -1)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_8_bit_rgb(tmp_path: Path, name: str) -> None:
    image, expected = KINDS[name]
    image.save(tmp_path / name)
    found = np.asarray(read_image(tmp_path / name, "RGB")).astype(int)
    assert found.shape == (6, 8, 3)
    assert np.abs(found - expected).max() <= 1


def test_images_without_a_known_range_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for values, match in ((LEVELS * 300, "floats from 0 to 300"), (LEVELS.astype(np.int32), "32-bit integers")):
        Image.fromarray(values).save(tmp_path / "wrong.tif")
        with pytest.raises(UnreadableImage, match=match):
            read_image(tmp_path / "wrong.tif", "RGB")
    Image.new("L", (9, 9)).save(tmp_path / "large.png")
    for limit in (50, 30):  # Pillow warns above the limit and refuses above twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match=f"more than {limit} pixels"):
            read_image((tmp_path / "large.png").read_bytes(), "RGB")


def test_augmentation_is_timms_and_a_function_of_seed_epoch_and_sample(tmp_path: Path) -> None:
    write_split(tmp_path, train=4, val=2, test=2)
    options = {"augmentation": {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5}}
    views = []
    for epoch in (0, 0, 1):
        dataset = data(tmp_path, **options).train_dataset()
        dataset.epoch = epoch
        views.append(torch.stack([image for image, _ in dataset]))
    assert "RandAugment" in repr(dataset.transform)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    refused(tmp_path, r"data\.augmentation = .*timm refuses it", augmentation={"hflipp": 1})
    assert "Random" not in repr(data(tmp_path, **options).dataset("val", augmented=True).transform)
