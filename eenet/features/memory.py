"""Features in memory."""

import psutil
import torch
from torch import distributed as dist

from eenet.errors import UserError
from eenet.features.extraction import Source, extract_rows, processes, shards
from eenet.features.layout import Layout
from eenet.features.table import FeatureTable
from eenet.files import size
from eenet.progress import tracked


def memory_table(source: Source, layout: Layout) -> FeatureTable:
    """Extract into memory; every process extracts its shards and receives the others'.

    Raises:
        UserError: The memory that is free is too small.
    """
    samples = len(source)
    needed, free = samples * layout.sample_bytes, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            "model.features",
            "memory",
            f"{source.name} needs {size(needed)} and {size(free)} are free; use `disk`",
        )
    arrays = {name: torch.empty(samples, *shape, dtype=dtype) for name, (shape, dtype) in layout.arrays.items()}
    world, rank = processes()
    ranges = shards(samples, layout.sample_bytes)
    for number in tracked(range(rank, len(ranges), world), f"features of {source.name}"):
        rows = ranges[number]
        start = rows.start
        for batch in extract_rows(source, layout, rows):
            for name, values in batch.items():
                arrays[name][start : start + len(values)] = values
            start += len(batch["labels"])
    if world > 1:
        device = next(source.network.parameters()).device
        for number, rows in enumerate(ranges):
            for array in arrays.values():
                piece = array[rows.start : rows.stop].to(device)
                dist.broadcast(piece, src=number % world)
                array[rows.start : rows.stop] = piece.cpu()
    return FeatureTable(arrays)
