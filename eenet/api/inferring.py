"""Label, probability, exit and MACs of new images or texts, or of a run's own split, into Parquet, CSV or JSONL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from eenet.api.exporting import about_point, float_point
from eenet.api.inputs import Entry, Item, Reader, Unreadable, batches, entries, items
from eenet.api.opening import Chosen, Run, chosen_point, class_names, open_run, opened, samples_of_loader
from eenet.api.outputs import COLUMNS, QUANTIZED_COLUMNS, Parts, Row, rows_of
from eenet.backbones.base import to_device
from eenet.cluster import Cluster, exactly_once
from eenet.errors import WHERE, UserError, said, some
from eenet.files import sha256
from eenet.progress import tracked
from eenet.runtime import ExportedRuntime, RoutedOnnx, load
from eenet.tokens import like


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
    cluster: Cluster | None = None,
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
        cluster: Routes the batches in the place of this process; the output is the same.

    Raises:
        UserError: No such run or point, nothing to read, an output that cannot be used, or no such cluster.
    """
    check_size(batch_size)
    run = opened(run, checkpoint, read_data=False)
    chosen, source = chosen_point(run, point), Path(input)
    if not hasattr(run.data, "reader"):
        raise UserError("data", type(run.data).__name__, "`eenet infer` reads images and texts")
    reader = run.data.reader()
    if next(entries(source, reader), None) is None:
        wanted = ", ".join(reader.suffixes)
        raise UserError("input", str(source), f"holds nothing to read; a folder needs files that end in {wanted}")
    about = job_of_files(run, chosen, source, batch_size)
    route = Router(run, chosen, None if exported is None else exported_of(run, chosen, exported))
    parts = Parts(Path(output), about, route.columns)
    if cluster is not None and not parts.joined:
        told = Files(
            run=str(run.folder),
            checkpoint=str(run.checkpoint),
            point=point,
            exported=None if exported is None else str(exported),
            source=str(source),
            batch_size=batch_size,
            about=json.dumps(about),
        )
        spread(cluster, told, reader, parts)
    return write(route, batches(items(source, reader), batch_size), reader.collate, parts)


@dataclass(frozen=True)
class Files:
    """What the processes of a cluster are told of files that they route.

    Attributes:
        run: The run folder.
        checkpoint: Its checkpoint.
        point: Name of the point, `None` for the run's own.
        exported: Folder of what routes in the network's place.
        source: The folder or file.
        batch_size: Inputs that are routed together.
        about: The job, as JSON.
    """

    run: str
    checkpoint: str
    point: str | None
    exported: str | None
    source: str
    batch_size: int
    about: str


def spread(cluster: Cluster, files: Files, reader: Reader, parts: Parts) -> None:
    """Let a cluster route the batches that are not whole.

    Raises:
        UserError: There is no such cluster, a node does not see the run or the files, or a batch does not arrive once.
    """
    found = enumerate(batches(entries(Path(files.source), reader), files.batch_size))
    lacking = {number: batch for number, batch in found if not parts.has(number, [entry.id for entry in batch])}
    asked = {number: [entry.id for entry in batch] for number, batch in lacking.items()}
    if not lacking:
        return
    with cluster.joined(parts.folder) as nodes:
        routed = exactly_once(nodes.blocks(route_entries, files, lacking), asked)
        for number, rows in tracked(routed, "batches", len(lacking)):
            parts.write(number, rows)


def route_entries(files: Files, batch: list[Entry]) -> tuple[list[str], list[Row]]:
    """Ids and rows of a batch, in a process of a cluster; a `UserError` where it does not see the run or a file."""
    for entry in batch:
        if isinstance(entry.what, Path) and not entry.what.exists():
            raise UserError("input", str(entry.what), "is not on every node, or was removed; all need one file system")
    route, reader = _router(files)
    rows = route([entry.item(reader, Path(files.source).parent) for entry in batch], reader.collate)
    return [row["id"] for row in rows], rows


@lru_cache(1)
def _router(files: Files) -> tuple[Router, Reader]:
    run, source = open_run(files.run, False, files.checkpoint), Path(files.source)
    chosen = chosen_point(run, files.point)
    if not source.exists() or json.dumps(job_of_files(run, chosen, source, files.batch_size)) != files.about:
        raise UserError("run", files.run, "it, its point or the input is another on this node, or has changed")
    runtime = None if files.exported is None else exported_of(run, chosen, files.exported)
    return Router(run, chosen, runtime), run.data.reader()


def exported_of(run: Run, chosen: Chosen, folder: str | Path) -> ExportedRuntime | RoutedOnnx:
    """An exported folder, or a `UserError` where it is of another run or point, or cannot be loaded."""
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
        batch_size: Samples that are routed together; data from loaders keep their batches.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: No such run, point or split, or an output that cannot be used.
    """
    check_size(batch_size)
    run = opened(run, checkpoint)
    if run.data.of_tokens:
        raise UserError("run", str(run.folder), "holds a decoder, whose texts `eenet generate` writes")
    chosen = chosen_point(run, point)
    found, collate = numbered(run.data, split, batch_size), getattr(run.data, "collate", None) or default_collate
    about = job(run, chosen, batch_size, split=split, changed=run.data.fingerprint(split))
    route = Router(run, chosen)
    parts = Parts(Path(output), about, route.columns)
    return write(route, found, lambda rows: collate(rows)[0], parts)


def numbered(data: Any, split: str, batch_size: int) -> Iterator[list[Item]]:
    """The samples of a split by their numbers, in batches; of data that come in batches alone, in those.

    Raises:
        UserError: The first of those batches cannot be used.
    """
    if hasattr(data, "dataset"):
        dataset = data.dataset(split)
        found = (Item(str(row), lambda row=row: dataset[row]) for row in range(len(dataset)))  # type: ignore[misc]
        return batches(found, batch_size)
    given, number = samples_of_loader(data, split), count()
    first = list(islice(given, 1))
    return (
        [Item(str(next(number)), lambda sample=sample: sample) for sample in samples]  # type: ignore[misc]
        for samples in chain(first, given)
    )


def check_size(batch_size: int) -> None:
    """Raise a `UserError` where a batch would be empty."""
    if batch_size < 1:
        raise UserError("batch-size", batch_size, "must be at least 1")


def write(route: Router, found: Iterable[list[Item]], collate: Callable[[list[Any]], Any], parts: Parts) -> Inferred:
    """Route items into a file, by parts that a killed job or a cluster leaves."""
    if parts.joined:
        parts.drop()
        return Inferred(parts.output, route.point, None, [])
    samples = number = 0
    try:
        for number, batch in enumerate(found, 1):
            samples += len(batch)
            if not parts.has(number - 1, [item.id for item in batch]):
                parts.write(number - 1, route(batch, collate))
    except UserError as error:
        # A source at fault is another job once it is mended; a disk may be there again at the next call.
        if error.field != "output" and not isinstance(error.__cause__, OSError):
            parts.drop()
        raise
    unreadable = list(parts.problems(number))
    parts.join(number)
    return Inferred(parts.output, route.point, samples - len(unreadable), unreadable)


def job_of_files(run: Run, chosen: Chosen, source: Path, batch_size: int) -> dict[str, Any]:
    """As `job`, of a folder or file, which is known by its size and time."""
    stat = source.stat()
    changed = [stat.st_size, stat.st_mtime_ns] if source.is_file() else None
    return job(run, chosen, batch_size, input=str(source.resolve()), changed=changed)


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
        self.example, self.temperatures = self.network.backbone.example_input(), None
        if chosen.temperatures is not None:
            self.temperatures = chosen.point.own(chosen.temperatures, run.model.network)
        if runtime is not None and self.temperatures is not None:  # of int8 they are others
            self.temperatures = torch.tensor(runtime.manifest.point["temperatures"])
        self.names, self.known = class_names(run.data), set[str]()
        self.columns = QUANTIZED_COLUMNS if "bitops" in self.network.costs.columns else COLUMNS

    def __call__(self, batch: list[Item], collate: Callable[[list[Any]], Any]) -> list[Row]:
        """A row per item, in their order.

        Raises:
            UserError: An item raises, or the items do not fit each other or the network.
        """
        rows: list[Row] = []
        inputs = []
        for item in batch:
            rows.append({"id": item.id})
            try:
                inputs.append(item.read())
            except Unreadable as error:
                rows[-1]["problem"] = str(error)
            except (MemoryError, UserError):
                raise
            except Exception as error:
                raise UserError("input", item.id, f"cannot be read ({said(error)}); {WHERE}") from error
        if inputs:
            found = iter(self._fitting([item.id for item in batch], inputs, collate))
            rows = [row if "problem" in row else {**row, **next(found)} for row in rows]
        return rows

    def _fitting(self, ids: list[str], inputs: list[Any], collate: Callable[[list[Any]], Any]) -> list[Row]:
        kinds = set[str]().union(*map(parts_of, inputs))
        try:
            rows = self.route(collate(inputs))
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            unlike = sorted(kinds - self.known)
            if not unlike or (not self.known and len(unlike) == 1):
                raise
            before = ", unlike others before" if self.known else ""
            problem = f"cannot be routed with {some(unlike)}{before} ({said(error)}); {WHERE}"
            raise UserError("input", f"{ids[0]} to {ids[-1]}", problem) from error
        self.known |= kinds
        return rows

    @torch.no_grad()
    def route(self, inputs: Any) -> list[Row]:
        """What is written of routed inputs; probabilities are tempered at a calibrated point."""
        if self.runtime is not None:
            routed = self.runtime(like(self.example, inputs))
        else:
            routed = self.network.route(to_device(inputs, self.network), self.policy)
        return rows_of(routed, self.names, self.temperatures, self.network.tree)


def parts_of(item: Any) -> set[str]:
    """What an item is made of, in words.

    Example:
        >>> sorted(parts_of((torch.zeros(2), {"label": 1})))
        ['dict of label', 'int', 'shape (2,) of float32', 'tuple of 2']
    """
    if isinstance(item, torch.Tensor):
        return {f"shape {tuple(item.shape)} of {str(item.dtype).removeprefix('torch.')}"}
    if isinstance(item, Mapping):
        return {f"dict of {', '.join(map(str, item))}"}.union(*map(parts_of, item.values()))
    if isinstance(item, list | tuple):
        return {f"{type(item).__name__} of {len(item)}"}.union(*map(parts_of, item))
    return {type(item).__name__}
