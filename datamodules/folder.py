"""Images of one's own: a folder, a table or a Hugging Face data set, with the splits that it has."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from datamodules.base import Samples, Split
from datamodules.found import (
    TABLES,
    Columns,
    Found,
    Part,
    find_in_folder,
    find_in_hub,
    find_in_table,
    hub_folder,
)
from datamodules.photographs import PhotographData
from datamodules.splits import Rows
from datamodules.text import hub
from eenet.errors import UserError, some
from eenet.files import NameOrPath
from eenet.rank_zero import rank_zero_info, rank_zero_warn

Unreadable = Literal["error", "skip"]


class ImageFolder(PhotographData):
    """Images of one's own, with the splits that they have.

    `train`, `val` (or `valid`, `validation`) and `test` are used as they are called. A missing one is cut off the
    training images, all classes alike: a fifth for testing, always with seed 0, then `validation_fraction` of the rest.

    Args:
        root: Where the images are:

            * a folder with `train`, `val` and `test`, in each a folder per class, or a folder of such class folders;
            * a `.csv`, `.tsv`, `.jsonl` or `.parquet` table of paths (relative to the table) or encoded images, and
              labels, with a column `split` if they are split;
            * a folder of `datasets` (saved, or a repository of Parquet files), or a name on the Hugging Face hub.
        classes: Names of the classes in their order; `null` sorts those of the training images.
        config: Which configuration of a data set on the hub.
        image: Column of the images in a table; `null` finds it by name.
        label: Column of the labels in a table; `null` finds it by name.
        split: Column of the splits in a table.
        unreadable: `error` ends at the first image that cannot be read; `skip` leaves such images out before anything
            is split, for which all are decoded once whenever the data are opened, and lists them.
        download: Reach the hub.
    """

    def __init__(
        self,
        root: NameOrPath,
        classes: list[str] | None = None,
        config: str | None = None,
        image: str | None = None,
        label: str | None = None,
        split: str = "split",
        unreadable: Unreadable = "error",
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if unreadable not in get_args(Unreadable):
            raise UserError("data.unreadable", unreadable, f"must be one of {', '.join(get_args(Unreadable))}")
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise UserError("data.classes", classes, "must be at least 2 different classes")
        path = Path(root)
        if path.is_file() and path.suffix.lower() not in TABLES:
            raise UserError("data.root", root, f"must be a folder, or a table that ends in {', '.join(TABLES)}")
        self.root, self.classes, self.config = root, classes, config
        self.columns = Columns(image, label, split)
        self.unreadable, self.download = unreadable, download
        self.name = (path.resolve() if path.exists() else path).stem
        self.skipped: dict[str, str] = {}

    @cached_property
    def found(self) -> Found:
        """What `root` holds, without the images that are skipped.

        Raises:
            UserError: It cannot be read.
        """
        root = Path(self.root)
        if root.is_file():
            found = find_in_table(root, self.columns, self.mode, self.unreadable == "skip")
        elif root.is_dir() and not hub_folder(root):
            found = find_in_folder(root, self.mode)
        else:
            found = find_in_hub(self._load(), self.root, self.columns, self.mode)
        if found.passed_over:
            rank_zero_info(f"data.root = {self.root!r}: passed over {some(found.passed_over)}")
        for part in found.parts.values() if self.unreadable == "skip" else ():
            self._skip(part)
        return found

    def _load(self) -> Any:
        try:
            from datasets import load_dataset, load_from_disk
        except ImportError as error:
            problem = "there is no such folder or table"
            remedy = "for a data set of the Hugging Face hub, pip install 'eenet[text]'"
            raise UserError("data.root", self.root, f"{problem}; {remedy}") from error
        root = Path(self.root)
        try:
            if root.is_dir() and not (any(root.glob("*.parquet")) or any(root.glob("*/*.parquet"))):
                return load_from_disk(self.root)
            with hub(self.download):
                return load_dataset(self.root, self.config)
        except Exception as error:
            reason = error.__cause__ or error
            hint = "" if self.download else "; data.init_args.download: true asks the hub"
            problem = f"is no folder or table, nor a data set that can be read ({type(reason).__name__}: {reason})"
            raise UserError("data.root", self.root, f"{problem}{hint}") from error

    def _skip(self, part: Part) -> None:
        problems = part.images.problems()
        for row, problem in problems.items():
            self.skipped[part.images.relative(row)] = problem
            rank_zero_warn(f"data.unreadable = 'skip': {part.images.names[row]}: {problem}")
        rows = np.array([row for row in range(len(part.labels)) if row not in problems], dtype=np.int64)
        part.images.keep(rows)
        part.labels = [part.labels[row] for row in rows]

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes: the class number is the place in this list."""
        if isinstance(self.recalled, list):
            return self.recalled
        if self.classes is not None:
            return self.classes
        if self.found.classes is not None:
            return self.found.classes
        labels = self.found.parts["train"].labels
        wrong = next((label for label in labels if not isinstance(label, str | int) or isinstance(label, bool)), None)
        if wrong is None and Path(self.root).suffix.lower() in (".csv", ".tsv"):  # whose numbers are text
            wrong = first_fraction(labels)
        if wrong is not None:
            kind = "regression is not supported" if isinstance(wrong, float) else "one class per image is supported"
            raise UserError("data.label", wrong, f"labels must be names or whole numbers; {kind}")
        found = sorted(set(map(str, labels)))
        names = sorted(found, key=class_order(found))
        if len(names) < 2:
            raise UserError("data.root", self.root, f"has one class, {names[0]}; two are the least to tell apart")
        return names

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes, which reads what `root` holds if `classes` is not given."""
        return len(self.class_names)

    def read(self) -> tuple[Samples, Samples | None]:
        """The training images, and those to test on if there is such a split."""
        train, test = self._samples("train"), self._samples("test")
        assert train is not None
        missing = sorted(set(range(self.num_classes)) - set(train.labels.tolist()))
        if missing:
            empty = some([self.class_names[number] for number in missing])
            raise UserError("data.root", train.source, f"has no images of class {empty} to learn from")
        return train, test

    def read_validation(self) -> Samples | None:
        """The validation images, if there is such a split."""
        return self._samples("val")

    def _samples(self, split: Split) -> Samples | None:
        part = self.found.parts.get(split)
        if part is None:
            return None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        unknown = sorted(set(map(str, part.labels)) - numbers.keys())
        if unknown:
            known = f"is not among the {len(numbers)} classes {some(self.class_names)}"
            raise UserError("data.root", part.source, f"the class {some(unknown)} {known}")
        labels = np.array([numbers[str(label)] for label in part.labels], dtype=np.int64)
        if len(labels) == 0:
            raise UserError("data.root", part.source, "holds no images that can be read")
        absent = [name for name, number in numbers.items() if number not in set(labels.tolist())]
        if absent and split != "train":
            rank_zero_warn(f"{part.source} has no images of class {some(absent)}, which it cannot judge")
        return Samples(part.images, labels, part.source)

    @cached_property
    def _splits(self) -> dict[str, tuple[Samples, Rows]]:
        splits = super()._splits
        self._refuse_shared(splits)
        for split, (samples, rows) in splits.items():
            rank_zero_info(f"{self.name}: {len(rows):,} images to {split}, {self.origin(split)} {samples.source}")
        return splits

    def origin(self, split: str) -> str:
        """Whether a split is the user's, or `cut from` the training images."""
        return "from" if split in self.found.parts else "cut from"

    def _refuse_shared(self, splits: dict[str, tuple[Samples, Rows]]) -> None:
        seen: dict[str, str] = {}
        for split, (samples, rows) in splits.items():
            for name in samples.inputs.names[rows]:
                if seen.setdefault(name, split) != split:
                    problem = f"is in {seen[name]} and in {split}; a split that shares images judges nothing"
                    raise UserError("data.root", name, problem)

    def split_record(self) -> dict[str, Any]:
        """As for every data set, by the images' own names; also where the splits come from, and what was skipped."""
        digests = {}
        for split, (samples, rows) in self._splits.items():
            content = hashlib.sha256()
            for row in rows:
                content.update(f"{samples.inputs.relative(row)}\t{samples.labels[row]}\n".encode())
            digests[split] = content.hexdigest()
        return {
            **super().split_record(),
            "digest": digests,
            "classes": self.class_names,
            "cut": self.cut,
            **({"skipped": sorted(self.skipped)} if self.skipped else {}),
        }


def first_fraction(labels: Sequence[str]) -> float | None:
    """The first label with decimals where all are numbers, as the targets of a regression are.

    Example:
        >>> first_fraction(["1", "0.25"]), first_fraction(["1", "2"]), first_fraction(["1.5", "cat"])
        (0.25, None, None)
    """
    try:
        return next((value for value in list(map(float, labels)) if value % 1), None)
    except ValueError:
        return None


def class_order(names: Sequence[str]) -> Any:
    """The key by which names of classes are sorted: by value if all are whole numbers.

    Example:
        >>> names = ["10", "9"]
        >>> sorted(names, key=class_order(names))
        ['9', '10']
    """
    return (lambda name: (int(name), name)) if all(name.isdecimal() for name in names) else (lambda name: name)
