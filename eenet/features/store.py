"""Features on disk: one memory-mapped file per exit, written and checked in shards.

A store is a folder: `manifest.json`, a raw file per array of the layout over all samples, and `shards/<number>.json`
with the checksum of a range of samples. That file is written, beside and renamed, after the shard's samples are on the
disk; a shard is whole if it is there and agrees. A killed extraction therefore goes on with the shards that are not
whole, and a damaged shard is extracted again. Processes share the shards by number.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch import distributed as dist

from eenet.cluster import Cluster
from eenet.errors import UserError, said
from eenet.features.extraction import Source, extract_shard, processes, shards
from eenet.features.layout import Layout
from eenet.features.mapping import MappedTable
from eenet.features.spreading import spread
from eenet.features.table import FeatureTable
from eenet.files import name_file, size
from eenet.progress import tracked
from eenet.reading import read_json
from eenet.reporting import write_json

SCHEMA = 1
CHUNK = 2**20
"""Bytes read at a time for a checksum."""


@dataclass(frozen=True)
class FeatureStore:
    """A store's folder and what it holds.

    Attributes:
        folder: The folder, named by the store's key.
        name: Of the samples, for people.
        samples: Number of samples.
        layout: Of one sample.
        shards: The ranges of samples that are written and checked together.
    """

    folder: Path
    name: str
    samples: int
    layout: Layout
    shards: tuple[range, ...]

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """The store in a folder, whole or not.

        Raises:
            UserError: There is no readable manifest.
        """
        try:
            manifest = read_json(folder / "manifest.json")
            if manifest["schema"] != SCHEMA:
                raise KeyError(f"schema {SCHEMA}")
            shapes = tuple(tuple(shape) for shape in manifest["layout"].pop("shapes"))
            layout = Layout(shapes, **manifest["layout"])
            if layout.sample_bytes < 0 or (type(manifest["name"]), type(manifest["samples"])) != (str, int):
                raise ValueError("name or sizes")
            ranges = tuple(range(*rows) for rows in manifest["shards"])
            starts, stops = [rows.start for rows in ranges], [rows.stop for rows in ranges]
            if [*starts, manifest["samples"]] != [0, *stops] or any(rows.step != 1 for rows in ranges):
                raise ValueError("shards")
            return cls(folder, manifest["name"], manifest["samples"], layout, ranges)
        except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"holds no store of features ({said(error)}); remove the folder"
            raise UserError("features.folder", str(folder), problem) from error

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        ranges = [[rows.start, rows.stop] for rows in self.shards]
        heading = {"schema": SCHEMA, "name": self.name, "samples": self.samples}
        return heading | {"layout": asdict(self.layout), "shards": ranges}

    @property
    def num_bytes(self) -> int:
        """Bytes of all samples."""
        return self.samples * self.layout.sample_bytes

    @property
    def files(self) -> Iterator[tuple[str, Path, int]]:
        """Name, path and bytes per sample of every array."""
        for name, (shape, dtype) in self.layout.arrays.items():
            yield name, self.folder / f"{name}.bin", dtype.itemsize * torch.Size(shape).numel()

    def check_space(self) -> None:
        """Raise a `UserError` that names what is needed and what is free where the store does not fit on the disk."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        taken = sum(path.stat().st_blocks * 512 for _, path, _ in self.files if path.exists())
        needed, free = self.num_bytes - taken, shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise UserError(
                "model.features.folder",
                str(self.folder.parent),
                f"{self.name} needs {size(needed)} and {size(free)} are free; remove stores with "
                "`eenet features remove`, store float16, or choose another folder",
            )

    def prepare(self) -> None:
        """Write the manifest and give every file its size; what is there and belongs here stays, but for links."""
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        try:
            fits = FeatureStore.open(self.folder) == self
        except UserError:
            fits = False
        if not fits:
            for number in range(len(self.shards)):
                self._marker(number).unlink(missing_ok=True)
            write_json(self.folder / "manifest.json", self.manifest)
        for _, path, sample_bytes in self.files:
            if path.is_symlink():
                path.unlink()
            path.touch()
            os.truncate(path, self.samples * sample_bytes)

    def state(self, number: int) -> str:
        """`whole`, `missing` or `damaged`, after reading all of a shard."""
        try:
            expected = read_json(self._marker(number))["sha256"]
        except FileNotFoundError:
            return "missing"
        except (OSError, LookupError, TypeError, ValueError):
            return "damaged"
        if any(path.is_symlink() or not path.is_file() for _, path, _ in self.files):
            return "damaged"
        return "whole" if self._checksum(number) == expected else "damaged"

    def lacks(self, number: int) -> bool:
        """Whether a shard is to be extracted; says so of a damaged one."""
        state = self.state(number)
        if state == "damaged":
            print(f"features: shard {number} of {self.folder} ({self.name}) is damaged and is extracted again")
        return state != "whole"

    def write(self, number: int, arrays: dict[str, Tensor]) -> None:
        """Write a shard's samples and, when they are on the disk, its checksum."""
        self._marker(number).unlink(missing_ok=True)
        total = hashlib.sha256()
        for name, path, sample_bytes in self.files:
            values = arrays[name].contiguous().view(-1).view(torch.uint8).numpy().data
            total.update(values)
            try:
                with path.open("r+b") as file:
                    file.seek(self.shards[number].start * sample_bytes)
                    file.write(values)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                name_file(error, path)
                raise
        write_json(self._marker(number), {"sha256": total.hexdigest()})

    def table(self) -> FeatureTable:
        """The features, mapped."""
        paths = {name: path for name, path, _ in self.files}
        return MappedTable(paths, self.layout, self.samples)

    def _marker(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:06d}.json"

    def _checksum(self, number: int) -> str:
        total = hashlib.sha256()
        for _, path, sample_bytes in self.files:
            with path.open("rb") as file:
                file.seek(self.shards[number].start * sample_bytes)
                left = len(self.shards[number]) * sample_bytes
                while left > 0 and (chunk := file.read(min(left, CHUNK))):
                    total.update(chunk)
                    left -= len(chunk)
        return total.hexdigest()


def disk_table(source: Source, layout: Layout, folder: Path, cluster: Cluster | None = None) -> FeatureTable:
    """Open a store, after extracting what it lacks; every process extracts its share of the shards.

    Args:
        source: What to extract from.
        layout: Of one sample.
        folder: Of the store, which all processes see; its name is the store's key.
        cluster: Extracts in the place of this process, which writes what it is sent.

    Raises:
        UserError: The disk is too small, or there is no such cluster.
    """
    ranges = tuple(shards(len(source), layout.sample_bytes))
    store = FeatureStore(folder, source.name, len(source), layout, ranges)
    store.check_space()
    world, rank = processes()
    folder.mkdir(exist_ok=True)
    with nullcontext() if rank else FileLock(folder / "lock"):
        if rank == 0:
            store.prepare()
        _barrier(world)
        lacking = {number: ranges[number] for number in range(rank, len(ranges), world) if store.lacks(number)}
        extracted: Iterator[tuple[int, dict[str, Tensor]]]
        extracted = ((number, extract_shard(source, layout, rows)) for number, rows in lacking.items())
        if cluster is not None and lacking:
            extracted = spread(source, layout, lacking, folder, cluster)
        for number, arrays in tracked(extracted, f"features of {source.name}", len(lacking)):
            store.write(number, arrays)
        _barrier(world)
    return store.table()


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()
