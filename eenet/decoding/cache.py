"""Keys and values of a decoder's layers: each layer keeps only the rows that run it, in buffers that grow."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from eenet.backbones.decoder import Call, with_module


class LayerCache:
    """What one layer's attention has seen: keys and values, each `(rows, heads, columns, head_dim)`.

    Full buffers grow by a quarter and some, so a token is written once and copied a few times at most.

    Args:
        count: Number of rows.

    Example:
        >>> import torch
        >>> cache, token = LayerCache(2), torch.ones(2, 1, 1, 4)
        >>> cache.write(None, 0, token, token)
        >>> cache.read(None, 1)[0].shape
        torch.Size([2, 1, 1, 4])
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._buffers: list[Tensor] = []

    def write(self, rows: Tensor | None, start: int, keys: Tensor, values: Tensor) -> None:
        """Keep what `tokens` columns from `start` on hold, `(rows, heads, tokens, head_dim)`.

        Args:
            rows: Which of the cache's rows, all for `None`.
            start: First column.
            keys: Of these rows and columns.
            values: Of these rows and columns.
        """
        stop = start + keys.shape[2]
        if not self._buffers or stop > self._buffers[0].shape[2]:
            self._grow(stop + stop // 4 + 64, (keys, values))
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[slice(None) if rows is None else rows, :, start:stop] = new

    def read(self, rows: Tensor | None, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the columns before `stop`; a view for all rows, a copy for some."""
        keys, values = (buffer[slice(None) if rows is None else rows, :, :stop] for buffer in self._buffers)
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.count, self._buffers = len(rows), [buffer[rows] for buffer in self._buffers]

    def shift(self, shifts: Sequence[int], columns: int) -> None:
        """Move each row's first columns to the right by so many, those that leave on the right back in on the left."""
        for row, shift in enumerate(shifts):
            for buffer in self._buffers if shift else ():
                buffer[row, :, :columns] = buffer[row, :, :columns].roll(shift, dims=1)

    def _grow(self, columns: int, like: tuple[Tensor, Tensor]) -> None:
        old = self._buffers
        self._buffers = [new.new_empty(self.count, new.shape[1], columns, new.shape[3]) for new in like]
        for buffer, previous in zip(self._buffers, old, strict=False):
            buffer[:, :, : previous.shape[2]] = previous


class Slot:
    """Where one call of a layer writes and reads; `transformers` takes it for its cache.

    Args:
        cache: The layer's.
        rows: Which of the cache's rows run, all for `None`.
        start: Column of the first token.

    Attributes:
        write_only: Raise `Written` once the tokens are written, before anything attends to them.
    """

    def __init__(self, cache: LayerCache, rows: Tensor | None, start: int) -> None:
        self.cache, self.rows, self.start, self.write_only = cache, rows, start, False

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens and give all up to them."""
        self.cache.write(self.rows, self.start, keys, values)
        if self.write_only:
            raise Written
        self.start += keys.shape[2]
        return self.cache.read(self.rows, self.start)

    def get_seq_length(self, *_: Any) -> int:
        """Columns written."""
        return self.start


class Written(Exception):
    """A layer's keys and values are written, the rest of it need not run."""


def read_before(columns: int) -> Any:
    """What `transformers` asks, when it makes masks and positions, of a cache that has so many columns in each layer.

    Every layer keeps all columns, those that see a window too: the library's mask hides what is outside of it.
    """
    from transformers.cache_utils import Cache, DynamicLayer

    class Columns(DynamicLayer):
        def get_seq_length(self) -> int:
            return columns

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return columns + query_length, 0

    return Cache(layers=[Columns()])


def write_keys(call: Call, layer: nn.Module, hidden: Tensor, slot: Slot) -> None:
    """Run a layer until the keys and values of hidden states `(rows, tokens, dim)` are written, without queries.

    Queries are left out where they have a map of their own, `q_proj`.
    """
    for path, module in layer.named_modules():
        if path.rpartition(".")[2] == "q_proj" and isinstance(module, nn.Linear):
            layer = with_module(layer, path, _Nothing(module.out_features))
    slot.write_only = True
    with suppress(Written):
        call.run(layer, hidden, slot)


class _Nothing(nn.Module):
    """Stands where the map of the queries stands, which nothing reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros(*hidden.shape[:-1], self.width)
