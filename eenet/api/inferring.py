"""Label, probability, exit and MACs of new images or texts, or of a run's own split, into Parquet, CSV or JSONL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eenet.api.exporting import about_point, float_point
from eenet.api.inputs import Item, Unreadable, batches, items
from eenet.api.opening import Chosen, Run, chosen_point, class_names, opened
from eenet.api.outputs import COLUMNS, QUANTIZED_COLUMNS, Parts, Row, rows_of
from eenet.backbones.base import to_device
from eenet.errors import UserError
from eenet.files import sha256
from eenet.runtime import ExportedRuntime, RoutedOnnx, load


@dataclass(frozen=True)
class Inferred:
    """What was written.

    Attributes:
        output: The file.
        point: Name of the operating point.
        samples: Rows that were written; `None` where they were written whole before.
        unreadable: A row with `id` and `problem` for each input that could not be read.
    """

    output: Path
    point: str
    samples: int | None
    unreadable: list[Row]


def infer(
    run: Run | str | Path,
    input: str | Path,
    output: str | Path,
    *,
    point: str | None = None,
    batch_size: int = 256,
    exported: str | Path | None = None,
    checkpoint: str = "last",
) -> Inferred:
    """Route every input of a source; a job that was killed goes on with the batches that are not whole.

    Args:
        run: The run, or its folder.
        input: Folder of images or texts, or a `.csv` or `.jsonl` file.
        output: New file ending in `.parquet`, `.csv` or `.jsonl`.
        point: A point of `calibrate`, else the run's own.
        batch_size: Inputs that are read and routed together.
        exported: A folder that `export` made of the run at that point, which routes in the network's place.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: No such run or point, nothing to read, or an output that cannot be used.
    """
    check_size(batch_size)
    run = opened(run, checkpoint, read_data=False)
    chosen, source = chosen_point(run, point), Path(input)
    if not hasattr(run.data, "reader"):
        raise UserError("data", type(run.data).__name__, "`eenet infer` reads images and texts")
    reader = run.data.reader()
    if next(items(source, reader), None) is None:
        wanted = ", ".join(reader.suffixes)
        raise UserError("input", str(source), f"holds nothing to read; a folder needs files that end in {wanted}")
    stat = source.stat()
    changed = [stat.st_size, stat.st_mtime_ns] if source.is_file() else None
    about = job(run, chosen, batch_size, input=str(source.resolve()), changed=changed)
    route = Router(run, chosen, None if exported is None else exported_of(run, chosen, exported))
    return write(route, batches(items(source, reader), batch_size), reader.collate, Path(output), about)


def exported_of(run: Run, chosen: Chosen, folder: str | Path) -> ExportedRuntime | RoutedOnnx:
    """An exported folder, if it is of a run at a point.

    Raises:
        UserError: It is of another one, or cannot be loaded.
    """
    runtime = load(folder)
    if float_point(runtime.manifest.point) != json.loads(json.dumps(about_point(run, chosen))):
        name = runtime.manifest.point.get("name")
        problem = f"holds point {name!r} of some run, not {chosen.name!r} of {run.folder} with its weights"
        raise UserError("exported", str(folder), f"{problem}; export it, or name its --point")
    return runtime


def predict(
    run: Run | str | Path,
    output: str | Path,
    *,
    split: str = "test",
    point: str | None = None,
    batch_size: int = 256,
    checkpoint: str = "last",
) -> Inferred:
    """Route a split of a run's own data, and write what `infer` does of files; an `id` is a place in the split.

    Args:
        run: The run, or its folder.
        output: New file ending in `.parquet`, `.csv` or `.jsonl`.
        split: `train`, `val` or `test`.
        point: A point of `calibrate`, else the run's own.
        batch_size: Samples that are routed together.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: No such run, point or split, or an output that cannot be used.
    """
    check_size(batch_size)
    run = opened(run, checkpoint)
    chosen = chosen_point(run, point)
    if not hasattr(run.data, "dataset"):
        raise UserError("data", type(run.data).__name__, "has no samples by number, which `eenet predict` needs")
    dataset, collate = run.data.dataset(split), run.data.collate or torch.utils.data.default_collate
    found = (Item(str(row), lambda row=row: dataset[row]) for row in range(len(dataset)))  # type: ignore[misc]
    about = job(run, chosen, batch_size, split=split, changed=run.data.fingerprint(split))
    return write(Router(run, chosen), batches(found, batch_size), lambda rows: collate(rows)[0], Path(output), about)


def check_size(batch_size: int) -> None:
    """Refuse an empty batch.

    Raises:
        UserError: It is.
    """
    if batch_size < 1:
        raise UserError("batch-size", batch_size, "must be at least 1")


def write(
    route: Router, found: Iterable[list[Item]], collate: Callable[[list[Any]], Any], output: Path, about: dict[str, Any]
) -> Inferred:
    """Route items into a file, by parts that a killed job leaves."""
    parts = Parts(output, about, route.columns)
    if parts.joined:
        parts.drop()
        return Inferred(output, route.point, None, [])
    samples = number = 0
    for number, batch in enumerate(found, 1):
        samples += len(batch)
        if not parts.has(number - 1, [item.id for item in batch]):
            parts.write(number - 1, route(batch, collate))
    unreadable = list(parts.problems(number))
    parts.join(number)
    return Inferred(output, route.point, samples - len(unreadable), unreadable)


def job(run: Run, chosen: Chosen, batch_size: int, **source: Any) -> dict[str, Any]:
    """What makes the rows of an output, as plain JSON values."""
    return {
        "checkpoint": sha256(run.checkpoint),
        "point": {"name": chosen.name, **chosen.point.to_dict()},
        **source,
        "batch_size": batch_size,
    }


class Router:
    """Turns items into rows.

    Args:
        run: The run.
        chosen: Its operating point.
        runtime: What routes in the network's place.
    """

    def __init__(self, run: Run, chosen: Chosen, runtime: ExportedRuntime | RoutedOnnx | None = None) -> None:
        self.point, self.runtime = chosen.name, runtime
        self.network, self.policy = chosen.point.network(run.model.network), chosen.point.policy
        self.temperatures = None
        if chosen.temperatures is not None:
            self.temperatures = chosen.point.own(chosen.temperatures, run.model.network)
        if runtime is not None and self.temperatures is not None:  # of int8 they are others
            self.temperatures = torch.tensor(runtime.manifest.point["temperatures"])
        self.names = class_names(run.data)
        self.columns = QUANTIZED_COLUMNS if "bitops" in self.network.costs.columns else COLUMNS

    def __call__(self, batch: list[Item], collate: Callable[[list[Any]], Any]) -> list[Row]:
        """A row per item, in their order."""
        rows: list[Row] = []
        inputs = []
        for item in batch:
            rows.append({"id": item.id})
            try:
                inputs.append(item.read())
            except Unreadable as error:
                rows[-1]["problem"] = str(error)
        if inputs:
            found = iter(self.route(collate(inputs)))
            rows = [row if "problem" in row else {**row, **next(found)} for row in rows]
        return rows

    @torch.no_grad()
    def route(self, inputs: Any) -> list[Row]:
        """What is written of routed inputs; probabilities are tempered at a calibrated point."""
        if self.runtime is not None:
            routed = self.runtime(inputs)
        else:
            routed = self.network.route(to_device(inputs, self.network), self.policy)
        return rows_of(routed, self.names, self.temperatures, self.network.tree)
