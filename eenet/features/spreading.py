"""Extraction by the tasks of a Ray cluster: each sends a shard with the ids of its samples."""

import pickle
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from eenet.cluster import Cluster, exactly_once
from eenet.features.extraction import Source, extract_shard
from eenet.features.layout import Layout
from eenet.late import without


def spread(
    source: Source, layout: Layout, ranges: Mapping[int, range], folder: Path, cluster: Cluster
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The arrays of shards by number, as they come from a cluster; a `UserError` if one does not come once."""
    asked = {number: source.ids[rows.start : rows.stop].tolist() for number, rows in ranges.items()}
    with cluster.joined(folder) as nodes:
        shared = nodes.ray.cloudpickle.dumps((source, layout, "cuda" if cluster.gpus else "cpu"))
        yield from exactly_once(nodes.tasks(extract_there, shared, ranges), asked)


def extract_there(shared: bytes, rows: range) -> tuple[list[int], dict[str, Tensor]]:
    """Ids and arrays of a shard, in a process of a cluster."""
    arrays = extract_shard(*_loaded(shared), rows)
    return arrays["ids"].tolist(), arrays


@lru_cache(1)
def _loaded(shared: bytes) -> tuple[Source, Layout]:
    with without():
        source, layout, device = pickle.loads(shared)
    source.network.to(device)
    return source, layout
