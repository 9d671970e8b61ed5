"""Keys and values of a decoder's layers: each layer keeps only the rows that run it, in buffers that grow."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class LayerCache:
    """What one layer's attention has seen: keys and values, each `(rows, heads, columns, head_dim)`.

    Full buffers grow by a quarter and some, so a token is written once and copied a few times at most.

    Example:
        >>> cache, token = LayerCache(), torch.ones(2, 1, 1, 4)
        >>> cache.write(None, 0, token, token)
        >>> cache.read(None, 1)[0].shape
        torch.Size([2, 1, 1, 4])
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def write(self, rows: Tensor | None, start: int, keys: Tensor, values: Tensor) -> None:
        """Keep what `tokens` columns from `start` on hold, `(rows, heads, tokens, head_dim)`.

        Args:
            rows: Which of the cache's rows, all for `None`; the first write is to all.
            start: First column.
            keys: Of these rows and columns.
            values: Of these rows and columns.
        """
        stop = start + keys.shape[2]
        if not self._buffers or stop > self._buffers[0].shape[2]:
            self._grow(stop + stop // 4 + 64, keys)
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[slice(None) if rows is None else rows, :, start:stop] = new

    def read(self, rows: Tensor | None, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the columns before `stop`; a view for all rows, a copy for some."""
        keys, values = (buffer[slice(None) if rows is None else rows, :, :stop] for buffer in self._buffers)
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self._buffers = [buffer[rows] for buffer in self._buffers]

    def _grow(self, columns: int, like: Tensor) -> None:
        old = self._buffers
        rows = len(old[0]) if old else len(like)
        self._buffers = [like.new_empty(rows, like.shape[1], columns, like.shape[3]) for _ in range(2)]
        for buffer, previous in zip(self._buffers, old, strict=False):
            buffer[:, :, : previous.shape[2]] = previous


class Slot(NamedTuple):
    """Where one call of a layer writes and reads; `transformers` takes it for its cache.

    Attributes:
        cache: The layer's.
        rows: Which of the cache's rows run, all for `None`.
        start: Column of the first token.
    """

    cache: LayerCache
    rows: Tensor | None
    start: int

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens and give all up to them."""
        self.cache.write(self.rows, self.start, keys, values)
        return self.cache.read(self.rows, self.start + keys.shape[2])


def attention_mask(real: Tensor, queries: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What the last columns may see, added to the attention scores.

    A column sees itself whatever it holds, so that no row of the softmax is empty.

    Args:
        real: Columns that hold a token, bool `(rows, columns)`.
        queries: How many of the last columns ask.
        window: How many columns back, its own included, a sliding layer sees.
        dtype: Of the scores.

    Returns:
        0 where a column is seen and the lowest number elsewhere, `(rows, 1, queries, columns)`.

    Example:
        >>> attention_mask(torch.tensor([[False, True, True]]), 2, None, torch.float32)[0, 0] == 0
        tensor([[False,  True, False],
                [False,  True,  True]])
    """
    columns = torch.arange(real.shape[1], device=real.device)
    back = columns[-queries:, None] - columns
    near = (back >= 0) if window is None else (back >= 0) & (back < window)
    seen = (near & real[:, None, None, :]) | (back == 0)
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill_(~seen, torch.finfo(dtype).min)
