"""Run a frozen backbone over a data set, once per sample."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from eenet.backbones.base import to_device
from eenet.errors import UserError
from eenet.features.layout import Layout
from eenet.network import EarlyExitNetwork

SHARD_BYTES = 2**24
"""Bytes of features after which a shard ends: what a kill costs at most."""


@dataclass(frozen=True)
class Source:
    """Samples to extract features from.

    Attributes:
        name: Of the samples, for messages.
        network: Whose backbone runs and whose heads say what is read.
        load: Batches `(inputs, labels)` of a range of samples, in order.
        labels: Class of every sample, `(samples,)`, int64.
        ids: Row of every sample in its data set, `(samples,)`, int64.
    """

    name: str
    network: EarlyExitNetwork
    load: Callable[[range], Iterable[tuple[Any, Tensor]]]
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def layout(self, dtype: str) -> Layout:
        """What one sample's features look like, from the first sample."""
        with frozen(self.network.backbone):
            inputs, _ = next(iter(self.load(range(1))))
            return Layout.of(self.network.extract(to_device(inputs, self.network)), dtype)


def shards(samples: int, sample_bytes: int) -> list[range]:
    """Cut a data set into ranges of samples of about `SHARD_BYTES`.

    Example:
        >>> shards(5, SHARD_BYTES // 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    step = max(1, SHARD_BYTES // sample_bytes)
    return [range(start, min(start + step, samples)) for start in range(0, samples, step)]


def extract_rows(source: Source, layout: Layout, rows: range) -> Iterator[dict[str, Tensor]]:
    """Features of a range of samples, batch by batch.

    Returns:
        The arrays of each batch by name, on the CPU, in the layout's dtypes.

    Raises:
        UserError: Samples differ in the shape of their features.
    """
    start = rows.start
    with frozen(source.network.backbone):
        for inputs, _ in source.load(rows):
            extracted = source.network.extract(to_device(inputs, source.network))
            if Layout.of(extracted, layout.dtype) != layout:
                shapes = [tuple(features.shape[1:]) for features in extracted.features]
                raise UserError("model.features", shapes, f"differ from the first sample's {list(layout.shapes)}")
            batch = slice(start, start + len(extracted.final_logits))
            arrays = layout.split(extracted, source.labels[batch], source.ids[batch])
            yield {name: arrays[name].to("cpu", dtype) for name, (_, dtype) in layout.arrays.items()}
            start = batch.stop


def extract_shard(source: Source, layout: Layout, rows: range) -> dict[str, Tensor]:
    """As `extract_rows`, in one batch."""
    batches = list(extract_rows(source, layout, rows))
    return {name: torch.cat([batch[name] for batch in batches]) for name in layout.arrays}


@contextmanager
def frozen(backbone: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and the random state afterwards as before."""
    modes = [(module, module.training) for module in backbone.modules()]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        backbone.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def processes() -> tuple[int, int]:
    """Number of processes and the number of this one."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_available() and dist.is_initialized() else (1, 0)
