"""What `eenet infer` writes: a part per batch beside the output, so that a killed run continues, joined at the end."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eenet.errors import UserError
from eenet.reporting import write_json, write_text

Row = dict[str, Any]
"""`id` and, of an input that was read, `label`, `probability`, `exit`, `macs`, `probabilities`; else its `problem`.

Where something is quantized also `path`, the widths of the segments that were run, and `bitops`.
"""

COLUMNS = ["id", "label", "probability", "exit", "macs", "probabilities"]
QUANTIZED_COLUMNS = [*COLUMNS[:-1], "path", "bitops", "probabilities"]
JOB = "job.json"


class Parts:
    """The parts of one output, each one batch of rows, written whole or not at all.

    Args:
        output: The file that they become.
        job: What makes the rows; parts of another job are not continued.
        columns: Of the rows.

    Attributes:
        done: Batches that were written before.

    Raises:
        UserError: The output exists, is of an unknown kind, or parts of another job are in the way.
    """

    def __init__(self, output: Path, job: dict[str, Any], columns: Sequence[str] = COLUMNS) -> None:
        if output.suffix not in JOINS:
            raise UserError("output", str(output), f"must end in {', '.join(JOINS)}")
        if output.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise UserError("output", str(output), "needs pyarrow: pip install 'eenet[export]'; or end it in .csv")
        if output.exists():
            raise UserError("output", str(output), "exists already; give a new file")
        self.columns = columns
        self.output, self.folder = output, output.with_name(f"{output.name}.parts")
        path = self.folder / JOB
        if not path.is_file():
            write_json(path, job)
        elif json.loads(path.read_text()) != job:
            raise UserError(
                "output", str(self.folder), "holds parts of another run, point, input or batch size; delete it"
            )
        self.done = 0
        while self.part(self.done).is_file():
            self.done += 1

    def part(self, number: int) -> Path:
        """File of a batch."""
        return self.folder / f"{number:08}.jsonl"

    def write(self, number: int, rows: list[Row]) -> None:
        """Keep the rows of a batch."""
        write_text(self.part(number), "".join(f"{json.dumps(row)}\n" for row in rows))

    def check(self, number: int, ids: list[str]) -> None:
        """Refuse to continue where the inputs are no longer those of a batch that was written.

        Raises:
            UserError: They are others.
        """
        if [row["id"] for row in self.read(number)] != ids:
            raise UserError("output", str(self.folder), "holds parts of other inputs; delete it")

    def read(self, number: int) -> list[Row]:
        """The rows of a batch."""
        with self.part(number).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def problems(self, batches: int) -> Iterator[Row]:
        """The inputs that could not be read."""
        return (row for number in range(batches) for row in self.read(number) if "problem" in row)

    def join(self, batches: int) -> None:
        """Make the output of so many batches, by a rename, and drop the parts."""
        whole = self.folder / f"whole{self.output.suffix}"
        JOINS[self.output.suffix](
            whole,
            self.columns,
            ([row for row in self.read(number) if "problem" not in row] for number in range(batches)),
        )
        os.replace(whole, self.output)
        shutil.rmtree(self.folder)


def _join_jsonl(path: Path, columns: Sequence[str], batches: Iterator[list[Row]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for rows in batches:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)


def _join_csv(path: Path, columns: Sequence[str], batches: Iterator[list[Row]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for rows in batches:
            writer.writerows({**row, "probabilities": json.dumps(row["probabilities"])} for row in rows)


def _join_parquet(path: Path, columns: Sequence[str], batches: Iterator[list[Row]]) -> None:
    arrow: Any = import_module("pyarrow")
    real, whole, text = arrow.float32(), arrow.int64(), arrow.string()
    types = {
        "probability": real,
        "exit": arrow.int32(),
        "macs": whole,
        "bitops": whole,
        "probabilities": arrow.list_(real),
    }
    schema = arrow.schema([(name, types.get(name, text)) for name in columns])
    with import_module("pyarrow.parquet").ParquetWriter(path, schema) as writer:
        for rows in batches:
            writer.write_table(arrow.Table.from_pylist(rows, schema))


JOINS: dict[str, Callable[[Path, Sequence[str], Iterator[list[Row]]], None]] = {
    ".parquet": _join_parquet,
    ".csv": _join_csv,
    ".jsonl": _join_jsonl,
}
