"""What `eenet infer` writes: a part per batch beside the output, so that a killed run continues, joined at the end."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from eenet.errors import UserError
from eenet.files import sha256, whole
from eenet.reading import read_json
from eenet.reporting import write_json, write_text
from eenet.routing.route import Routed
from eenet.tree import Tree, path_name

Row = dict[str, Any]
"""`id` and, of an input that was read, `label`, `probability`, `exit`, `macs`, `probabilities`; else its `problem`.

Where something is quantized also `path`, the widths of the segments that were run, and `bitops`.
"""

COLUMNS = ["id", "label", "probability", "exit", "macs", "probabilities"]
QUANTIZED_COLUMNS = [*COLUMNS[:-1], "path", "bitops", "probabilities"]
JOB, JOINED = "job.json", "joined.json"


def rows_of(routed: Routed, names: Sequence[str] | None, temperatures: Tensor | None, tree: Tree) -> list[Row]:
    """What is said of routed inputs, a row without `id` for each.

    Args:
        routed: What the network returned.
        names: Of the classes; their numbers where they have none.
        temperatures: Of every node, `(nodes,)`, where the network was calibrated: probabilities are tempered.
        tree: Of the network.
    """
    logits, exits = routed.logits.cpu().double(), routed.exits.cpu()
    if temperatures is not None:
        logits = logits / temperatures[routed.nodes.cpu()].unsqueeze(1)
    probabilities = logits.softmax(-1)
    best, labels = probabilities.max(-1)
    columns = labels, best, exits, routed.macs, probabilities
    rows = [
        {
            "label": str(label) if names is None else names[label],
            "probability": probability,
            "exit": exit,
            "macs": macs,
            "probabilities": every,
        }
        for label, probability, exit, macs, every in zip(*(column.tolist() for column in columns), strict=True)
    ]
    if routed.bitops is not None:
        paths = [path_name(tree.nodes[node]) for node in routed.nodes.tolist()]
        for row, path, bitops in zip(rows, paths, routed.bitops.tolist(), strict=True):
            row |= {"path": path, "bitops": bitops}
    return rows


class Parts:
    """The parts of one output, each one batch of rows with their digest, written whole or not at all.

    Args:
        output: The file that they become.
        job: What makes the rows; parts of another job are not continued.
        columns: Of the rows.

    Attributes:
        joined: Whether the output is there, and its job was killed before the parts were gone.

    Raises:
        UserError: The output exists, is of an unknown kind, or parts of another job are in the way.
    """

    def __init__(self, output: Path, job: dict[str, Any], columns: Sequence[str] = COLUMNS) -> None:
        if output.suffix not in JOINS:
            raise UserError("output", str(output), f"must end in {', '.join(JOINS)}")
        if output.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise UserError("output", str(output), "needs pyarrow: pip install 'eenet[export]'; or end it in .csv")
        self.columns = columns
        self.output, self.folder = output, output.with_name(f"{output.name}.parts")
        known = self._note(JOB)
        self.joined = output.exists() and known in (job, None) and self._note(JOINED) == sha256(output)
        if output.exists() and not self.joined:
            raise UserError("output", str(output), "exists already; give a new file")
        if known is None:
            write_json(self.folder / JOB, job)
        elif known != job:
            raise UserError(
                "output", str(self.folder), "holds parts of another run, point, input or batch size; delete it"
            )

    def part(self, number: int) -> Path:
        """File of a batch."""
        return self.folder / f"{number:08}.jsonl"

    def write(self, number: int, rows: list[Row]) -> None:
        """Keep the rows of a batch."""
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        write_text(self.part(number), f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")

    def has(self, number: int, ids: list[str]) -> bool:
        """Whether a batch was written before and is whole; a `UserError` where it was of other inputs."""
        rows = self._rows(number)
        if rows is not None and [row["id"] for row in rows] != ids:
            raise UserError("output", str(self.folder), "holds parts of other inputs; delete it")
        return rows is not None

    def read(self, number: int) -> list[Row]:
        """The rows of a batch, or a `UserError` where they are damaged or gone."""
        rows = self._rows(number)
        if rows is None:
            raise UserError("output", str(self.part(number)), "was damaged while it was in use; run the command again")
        return rows

    def problems(self, batches: int) -> Iterator[Row]:
        """The inputs that could not be read."""
        return (row for number in range(batches) for row in self.read(number) if "problem" in row)

    def _rows(self, number: int) -> list[Row] | None:
        if not self.part(number).is_file():
            return None
        digest, _, rows = self.part(number).read_bytes().partition(b"\n")
        if digest.decode(errors="replace") != hashlib.sha256(rows).hexdigest():
            print(f"{self.part(number)} is damaged and is made again")
            return None
        return [json.loads(line) for line in rows.splitlines()]

    def _note(self, name: str) -> Any:
        path = self.folder / name
        return read_json(path) if path.is_file() else None

    def join(self, batches: int) -> None:
        """Make the output of so many batches, whole or not at all, and drop the parts."""
        with whole(self.output) as beside:
            JOINS[self.output.suffix](
                beside,
                self.columns,
                ([_spelled(row) for row in self.read(number) if "problem" not in row] for number in range(batches)),
            )
            write_json(self.folder / JOINED, sha256(beside))
        self.drop()

    def drop(self) -> None:
        """Remove the parts, and last what says that they were joined."""
        for path in self.folder.iterdir():
            if path.name not in (JOB, JOINED):
                path.unlink()
        shutil.rmtree(self.folder)


def _spelled(row: Row) -> Row:
    r"""A row whose texts are UTF-8: what is none, as in a file's name of another encoding, is spelled as `\udcf6`."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    return row | {name: value.encode("utf-8", "backslashreplace").decode() for name, value in texts.items()}


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
