"""A loader through which a user's mistake in a worker process arrives as it was raised."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.samplers import Batches
from eenet.errors import UserError


class Loader(DataLoader):
    """torch's loader, which raises a `UserError` that a worker gives it in the place of a batch.

    torch itself makes a `RuntimeError` of an exception in a worker that has more than one argument.

    Args:
        dataset: The data set.
        options: As for `DataLoader`.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        if isinstance(self.batch_sampler, Batches):
            # Lightning asks a loader's sampler whether processes share the samples already; beside a batch sampler
            # torch leaves one there that nothing reads, and lets it be set no more.
            object.__setattr__(self, "sampler", self.batch_sampler.sampler)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def make_loader(dataset: Dataset, collate: Callable | None, **options: Any) -> Loader:
    """A `DataLoader` of a data set whose `__getitems__` gives a user's mistake instead of raising it."""
    return Loader(dataset, collate_fn=partial(_collate, collate or default_collate), **options)


def _collate(collate: Callable, items: list[Any] | UserError) -> Any:
    return items if isinstance(items, UserError) else collate(items)
