"""What `eenet infer` reads: images or texts of a folder, a CSV or a JSONL file, one after the other."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from eenet.errors import Unreadable, UserError

T = TypeVar("T")


class Item(NamedTuple):
    """One input before it is read.

    Attributes:
        id: Its path below the folder, or its `id` or row, counted from 0, in the file.
        read: Reads it, or raises `Unreadable`.
    """

    id: str
    read: Callable[[], Any]


class Reader(Protocol):
    """Reads inputs as the data of a run do.

    Attributes:
        suffixes: Of the files that are read in a folder, lower case.
        columns: Of the fields that are read in a CSV or JSONL file.
    """

    suffixes: tuple[str, ...]
    columns: list[str]

    def file(self, path: Path) -> Any:
        """An input from a file of a folder."""

    def fields(self, fields: list[str], base: Path) -> Any:
        """An input from the columns of a file in the folder `base`."""

    def collate(self, inputs: list[Any]) -> Any:
        """A batch, as the backbone takes it."""


class Entry(NamedTuple):
    """What stands in a source for one input, without the reader.

    Attributes:
        id: As of its `Item`.
        what: A file, the fields of a row, or why the row cannot be read.
    """

    id: str
    what: Path | dict[str, Any] | Unreadable

    def item(self, reader: Reader, base: Path) -> Item:
        """The input; paths in a row are relative to `base`."""
        if isinstance(self.what, Path):
            return Item(self.id, partial(reader.file, self.what))
        return Item(self.id, partial(read_row, self.what, reader, base))


def items(source: Path, reader: Reader) -> Iterator[Item]:
    """The inputs of a folder or file; see `entries`."""
    return (entry.item(reader, source.parent) for entry in entries(source, reader))


def entries(source: Path, reader: Reader) -> Iterator[Entry]:
    """What is in a folder, in the order of the paths, or in a file, in its order; nothing is read ahead.

    Raises:
        UserError: There is no such folder or file, or it lacks a column.
    """
    if source.is_dir():
        for path in walk(source):
            if path.suffix.lower() in reader.suffixes:
                yield Entry(path.relative_to(source).as_posix(), path)
        return
    rows = {".csv": csv_rows, ".jsonl": jsonl_rows}.get(source.suffix.lower())
    if rows is None or not source.is_file():
        raise UserError("input", str(source), "must be a folder, or a file that ends in .csv or .jsonl")
    for number, row in enumerate(rows(source, reader.columns)):
        name = row.get("id") if isinstance(row, dict) else None
        yield Entry(str(number if name in (None, "") else name), row)


def read_row(row: Any, reader: Reader, base: Path) -> Any:
    """The input that a row of a file stands for."""
    if isinstance(row, Unreadable):
        raise row
    missing = [column for column in reader.columns if not isinstance(row.get(column), str) or not row[column]]
    if missing:
        raise Unreadable(f"has no {', '.join(missing)}")
    return reader.fields([row[column] for column in reader.columns], base)


def csv_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a CSV file under its heading."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [column for column in columns if column not in (rows.fieldnames or ())]
            if missing:
                found = ", ".join(rows.fieldnames or ()) or "no columns"
                raise UserError("input", str(path), f"needs the column {', '.join(missing)} and has {found}")
            yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError("input", str(path), f"is no CSV file in UTF-8 ({error})") from error


def jsonl_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any] | Unreadable]:
    """An object per line; a line that holds none is one unreadable input."""
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else Unreadable("the line holds no JSON object")
            except (ValueError, RecursionError) as error:
                yield Unreadable(f"the line is no JSON ({error})")


def walk(folder: Path) -> Iterator[Path]:
    """Files at any depth, each folder's in the order of their names; links to folders are not followed."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))
        elif entry.is_file() and not entry.name.startswith("."):
            yield Path(entry.path)


def batches(found: Iterator[T], size: int) -> Iterator[list[T]]:
    """Items, or entries, in lists of a size, the last one shorter."""
    while batch := list(islice(found, size)):
        yield batch
