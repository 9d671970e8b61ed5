"""Features in memory-mapped files."""

import mmap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from eenet.features.layout import Layout
from eenet.features.table import FeatureTable
from eenet.network import ExitFeatures

RESIDENT_BYTES = 2**28
"""Bytes of mapped files that stay in the process before they are left to the system's cache."""

FAULT_BYTES = 2**21
"""Bytes that one access brings into the process at most: Linux maps a large folio of its cache as a whole."""


class MappedTable(FeatureTable):
    """The arrays of a store, read through memory maps with bounded resident memory.

    Args:
        paths: File of each array, by name.
        layout: Of one sample.
        samples: Number of samples.
    """

    def __init__(self, paths: Mapping[str, Path], layout: Layout, samples: int) -> None:
        self._maps: dict[str, mmap.mmap] = {}
        self._touched = 0
        super().__init__(
            {
                name: self._map(name, paths[name], (samples, *shape), dtype)
                for name, (shape, dtype) in layout.arrays.items()
            }
        )
        self._size = sum(map(len, self._maps.values()))
        self._from_disk = self._size > psutil.virtual_memory().available

    def __getitem__(self, rows: Sequence[int] | Tensor) -> tuple[ExitFeatures, Tensor]:
        """Features in float32 and labels of some rows."""
        index = torch.as_tensor(rows)
        if self._from_disk:
            self.prefetch(index)
        return super().__getitem__(index)

    def prefetch(self, index: Tensor) -> None:
        """Ask the disk for all rows of a batch at once, instead of waiting for one page after the other."""
        for mapped in self._maps.values():
            row_bytes = len(mapped) // len(self)
            for start in (index * row_bytes).tolist():
                page = start // mmap.PAGESIZE * mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, page, start + row_bytes - page)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Some rows of an array, copied out of its map."""
        rows = super().take(name, index)
        self._touched += min(len(index) * FAULT_BYTES, len(self._maps[name]))
        if self._touched > RESIDENT_BYTES and self._size > RESIDENT_BYTES:
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return rows

    def _map(self, name: str, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        self._maps[name] = mapped
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            return torch.frombuffer(mapped, dtype=dtype).view(shape)
