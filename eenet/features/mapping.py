"""Features in memory-mapped files."""

import mmap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from eenet.features.layout import Layout
from eenet.features.table import FeatureTable
from eenet.network import ExitFeatures

RESIDENT_BYTES = 2**29
"""Bytes of mapped files that stay in the process before they are left to the system's cache."""

FAULT_BYTES = 2**16
"""Bytes that one access brings into the process at most: Linux maps sixteen pages around it."""


class MappedTable(FeatureTable):
    """The arrays of a store, read through memory maps with bounded resident memory.

    Args:
        paths: File of each array, by name.
        layout: Of one sample.
        samples: Number of samples.
    """

    def __init__(self, paths: Mapping[str, Path], layout: Layout, samples: int) -> None:
        self._maps: list[mmap.mmap] = []
        self._touched = 0
        shapes = layout.arrays.items()
        super().__init__({name: self._map(paths[name], (samples, *shape), dtype) for name, (shape, dtype) in shapes})

    def __getitem__(self, rows: Sequence[int] | Tensor) -> tuple[ExitFeatures, Tensor]:
        """Features in float32 and labels of some rows, copied out of the maps."""
        batch = super().__getitem__(rows)
        self._touched += len(rows) * len(self._maps) * FAULT_BYTES
        if self._touched > RESIDENT_BYTES and sum(map(len, self._maps)) > RESIDENT_BYTES:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return batch

    def _map(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        self._maps.append(mapped)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            return torch.frombuffer(mapped, dtype=dtype).view(shape)
