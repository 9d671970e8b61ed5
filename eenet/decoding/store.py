"""Results that survive a kill: JSON lines that are only ever appended, and tables of tensors written whole."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from eenet.errors import DamagedError, said
from eenet.files import name_file, whole
from eenet.progress import tracked

Row = dict[str, Any]


class RowStore:
    """Rows by number, one JSON line each; a line that a kill cut short is dropped before the next is written.

    Args:
        path: The file; made with the first row.

    Example:
        >>> import tempfile
        >>> store = RowStore(Path(tempfile.mkdtemp(), "rows.jsonl"))
        >>> store.append([{"row": 3, "tokens": [1]}])
        >>> store.read()
        {3: {'row': 3, 'tokens': [1]}}
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[int, Row]:
        """The whole rows by their `row`.

        Raises:
            DamagedError: Another than the last one is none.
        """
        try:
            rows = [json.loads(line) for line in self._whole().splitlines()]
            return {row["row"]: row for row in rows}
        except (LookupError, RecursionError, TypeError, ValueError) as error:
            raise DamagedError("file", str(self.path), f"is damaged ({said(error)}); remove it") from error

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, safely on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = len(self._whole())
        try:
            with open(self.path, "ab") as file:
                file.truncate(size)
                file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            name_file(error, self.path)
            raise

    def fill(self, count: int, batch: int, what: str, compute: Callable[[list[int]], list[Row]]) -> list[Row]:
        """Compute the rows that are missing, a batch at a time.

        Args:
            count: Rows from 0 that there must be.
            batch: Rows computed at a time.
            what: Is computed, for the line of progress.
            compute: Makes the rows of the numbers given.

        Returns:
            All rows, in order.
        """
        done = self.read()
        missing = [row for row in range(count) if row not in done]
        for start in tracked(range(0, len(missing), batch), what):
            rows = compute(missing[start : start + batch])
            self.append(rows)
            done |= {row["row"]: row for row in rows}
        return [done[row] for row in range(count)]

    def _whole(self) -> bytes:
        content = self.path.read_bytes() if self.path.is_file() else b""
        return content[: content.rfind(b"\n") + 1]


def kept_table(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """A table from a `.safetensors` file, computed and written where it is not there; `DamagedError` if it is none."""
    if not path.is_file():
        table = {name: value.cpu().contiguous() for name, value in compute().items()}
        with whole(path) as beside:
            beside.write_bytes(save(table))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedError("file", str(path), f"is damaged ({said(error)}); remove it") from error
