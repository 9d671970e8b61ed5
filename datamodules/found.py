"""What a folder, a table or a Hugging Face data set holds: images with the names of their classes, split by split."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import Split
from datamodules.photographs import ImageCells, ImageFiles, Photographs
from eenet.errors import UserError, some
from eenet.files import sha256
from eenet.images import SUFFIXES, Mode

SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders, of splits and in the split column of a table."""

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("image", "img", "path", "file", "file_name", "filename")
LABEL_COLUMNS = ("label", "labels", "class")


@dataclass
class Part:
    """Images of a split, or of a set that is still to be cut.

    Attributes:
        images: The images.
        labels: Name, or number, of the class of every image.
        source: Where they come from, for messages.
    """

    images: Photographs
    labels: list[Any]
    source: str


@dataclass
class Found:
    """What was found.

    Attributes:
        parts: By split; what is not split is all `train`.
        classes: Names of the classes, in their order, if the source says them.
        passed_over: What was not taken, for people.
    """

    parts: dict[Split, Part]
    classes: list[str] | None = None
    passed_over: list[str] = field(default_factory=list)


def split_of(names: Sequence[str], source: str) -> dict[Split, str]:
    """Which of some names stands for which split.

    Raises:
        UserError: Two stand for the same, or there is no `train` beside others.
    """
    found: dict[Split, str] = {}
    for name in names:
        split = SPLITS.get(name.lower())
        if split in found:
            raise UserError("data.root", source, f"has {found[split]} and {name}, both for {split}; keep one")
        if split is not None:
            found[split] = name
    if found and "train" not in found:
        raise UserError("data.root", source, f"has {some(list(found.values()))} and no train to learn from")
    return found


def find_in_folder(root: Path, mode: Mode) -> Found:
    """A folder with `train`, `val` and `test` of class folders, or of class folders itself.

    Images of a class lie at any depth below its folder. What is hidden, or no image by its ending, is passed over.

    Raises:
        UserError: There are no class folders, or an empty one to learn from.
    """
    folders = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not hidden(path.name)]
    if not any(name.lower() == "train" for name in folders) and set(map(str.lower, folders)) - SPLITS.keys():
        splits: dict[Split, str] = {"train": "."}  # class folders, one of which may be called `test`
    else:
        splits = split_of(folders, str(root))
    if not splits:
        layout = "train, val and test with one folder per class in each, or one folder per class"
        raise UserError("data.root", str(root), f"has to hold {layout}; there are no folders in it")
    found = Found({})
    if splits["train"] != ".":
        found.passed_over = [name for name in folders if name not in splits.values()]
    for split, name in splits.items():
        found.parts[split] = _class_folders(root, root / name, split, mode, found.passed_over)
    return found


def _class_folders(root: Path, folder: Path, split: Split, mode: Mode, passed_over: list[str]) -> Part:
    paths: list[str] = []
    labels: list[str] = []
    for entry in sorted(folder.iterdir()):
        if hidden(entry.name):
            continue
        if not entry.is_dir():
            passed_over.append(entry.relative_to(root).as_posix())
            continue
        before = len(paths)
        for path in files_below(entry):
            if path.lower().endswith(SUFFIXES):
                paths.append(path)
            else:
                passed_over.append(os.path.relpath(path, root))
        if len(paths) == before and split == "train":
            raise UserError("data.root", str(entry), "is the folder of a class and holds no images; remove it")
        labels += [entry.name] * (len(paths) - before)
    if not paths:
        layout = "has to hold one folder per class with its images; if it is a class itself, give it another name"
        raise UserError("data.root", str(folder), f"{layout}; images without classes are for `eenet infer`")
    return Part(ImageFiles(root, paths, mode), labels, str(folder))


def hidden(name: str) -> bool:
    """Whether a file or folder is one of the system's."""
    return name.startswith(".") or name == "__MACOSX"


def files_below(folder: Path) -> Iterator[str]:
    """Files at any depth in the order of their names; links to folders are followed, once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        yield from (os.path.join(place, name) for name in sorted(files) if not hidden(name))


@dataclass(frozen=True)
class Columns:
    """Columns of a table; `None` for the first known name that there is.

    Attributes:
        image: Paths, relative to the table, or encoded images.
        label: Classes.
        split: Names of splits, if there is such a column.
    """

    image: str | None = None
    label: str | None = None
    split: str = "split"

    def choose(self, there: Sequence[str], source: str) -> tuple[str, str]:
        """The columns of the images and of the labels.

        Raises:
            UserError: They are not there.
        """
        return (
            _column("data.image", self.image, IMAGE_COLUMNS, there, source),
            _column("data.label", self.label, LABEL_COLUMNS, there, source),
        )


def _column(field: str, asked: str | None, known: Sequence[str], there: Sequence[str], source: str) -> str:
    found = [name for name in (known if asked is None else [asked]) if name in there]
    if not found:
        raise UserError(field, asked, f"{source} has the columns {', '.join(there)}; name one of them")
    return found[0]


def find_in_table(path: Path, columns: Columns, mode: Mode, missing: bool) -> Found:
    """A CSV, TSV, JSONL or Parquet table of paths, or of encoded images, and labels.

    Args:
        path: The table.
        columns: Its columns.
        mode: 8-bit grey or RGB, to which images are converted.
        missing: Whether files that are not there are let through, to be skipped later.

    Raises:
        UserError: The table cannot be read, a file is missing or named twice, or a split has no known name.
    """
    table = read_table(path)
    image, label = columns.choose(list(table), str(path))
    images, labels = table[image], list(table[label])
    empty = [row for row, value in enumerate(labels) if value is None or value == ""]
    if empty:
        raise UserError("data.label", label, f"{path} has no label in row {some(empty)}, counted from 0")
    splits = [SPLITS.get(str(value).lower()) for value in table.get(columns.split, ["train"] * len(labels))]
    if None in splits:
        wrong = table[columns.split][splits.index(None)]
        raise UserError("data.split", wrong, f"{path} names no known split there; {', '.join(SPLITS)} are known")
    if "train" not in splits:
        raise UserError("data.root", str(path), "has no rows, or none of the split train, to learn from")
    encoded = any(not isinstance(value, str) for value in images[:1])
    if not encoded:
        images = _paths(path, images, missing)
    digest = sha256(path) if encoded else ""

    def part(split: Split) -> Part:
        rows = np.array([row for row, name in enumerate(splits) if name == split])
        found: Photographs = ImageFiles(path.parent, [images[row] for row in rows] if not encoded else [], mode)
        if encoded:
            found = ImageCells(partial(_cell, images), rows, str(path), digest, mode)
        return Part(found, [labels[row] for row in rows], f"{path} ({split})")

    return Found({split: part(split) for split in dict.fromkeys(SPLITS.values()) if split in splits})


def _cell(images: Sequence[Any], row: int) -> Any:
    return images[row]


def _paths(table: Path, names: Sequence[Any], missing: bool) -> list[str]:
    wrong = [row for row, name in enumerate(names) if not isinstance(name, str) or not name]
    if wrong:
        raise UserError("data.image", str(table), f"there is no path in row {some(wrong)}, counted from 0")
    paths = [os.path.normpath(table.parent / name) for name in names]
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        if first.setdefault(path, row) != row:
            problem = f"is named in rows {first[path]} and {row}, counted from 0, of {table}; keep one"
            raise UserError("data.root", names[row], problem)
    gone = [path for path in paths if not os.path.isfile(path)]
    if gone and not missing:
        problem = f"{len(gone)} of its {len(paths)} files are missing: {some(gone)}"
        raise UserError("data.root", str(table), f"{problem}; data.init_args.unreadable: skip leaves them out")
    return paths


def read_table(path: Path) -> dict[str, Sequence[Any]]:
    """The columns of a table by name.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".jsonl":
                rows = [json.loads(line) for line in file if line.strip()]
            else:
                rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        names = list(dict.fromkeys(name for row in rows for name in row if name is not None))
        return {name: [row.get(name) for row in rows] for name in names}
    except (OSError, ValueError, csv.Error, AttributeError, TypeError) as error:
        raise UserError("data.root", str(path), f"is no table in UTF-8 ({type(error).__name__}: {error})") from error


def _read_parquet(path: Path) -> dict[str, Sequence[Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError("data.root", str(path), "needs pyarrow: pip install 'eenet[text]'") from error
    table = parquet.read_table(path)
    return {
        name: column.to_pylist() if not _encoded(column.type) else Arrow(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _encoded(kind: Any) -> bool:
    from pyarrow import types

    return types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)


class Arrow(Sequence):
    """A column whose cells become Python objects one by one.

    Args:
        column: A pyarrow column.
    """

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, rows: Any) -> Any:
        return self.column[rows].to_pylist() if isinstance(rows, slice) else self.column[rows].as_py()


def find_in_hub(table: Any, source: str, columns: Columns, mode: Mode) -> Found:
    """A `datasets.DatasetDict`, or one `Dataset` that is still to be cut, with an image column.

    Raises:
        UserError: The columns are not there, or an image has no label.
    """
    from datasets import ClassLabel, DatasetDict, Image

    tables = dict(table) if isinstance(table, DatasetDict) else {"train": table}
    splits = split_of(list(tables), source)
    if not splits:
        raise UserError("data.root", source, f"has the splits {some(list(tables))}; train is needed")
    found = Found({}, passed_over=[name for name in tables if name not in splits.values()])
    for split, name in splits.items():
        part = tables[name]
        image, label = columns.choose(part.column_names, source)
        kind = part.features[label]
        labels = list(part[label])
        if any(value is None or (isinstance(kind, ClassLabel) and value < 0) for value in labels):
            raise UserError("data.label", label, f"{source} has images without a label in its split {name}")
        if isinstance(kind, ClassLabel):
            found.classes = kind.names
            labels = [kind.names[value] for value in labels]
        images = part.select_columns([image])
        if isinstance(part.features[image], Image):
            images = images.cast_column(image, Image(decode=False))
        cells = ImageCells(partial(_field, images, image), np.arange(len(part)), f"{source} ({name})", "", mode)
        cells.fingerprint = images._fingerprint
        found.parts[split] = Part(cells, labels, f"{source} ({name})")
    return found


def _field(table: Any, name: str, row: int) -> Any:
    return table[row][name]


def hub_folder(root: Path) -> bool:
    """Whether a folder holds a data set of `datasets`: one that was saved, or a repository of Parquet files."""
    saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or any(root.glob("*.parquet")) or any(root.glob("*/*.parquet"))
