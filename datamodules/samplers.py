"""The order of training samples, shuffled or balanced, and how it is cut into batches."""

from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
from torch.utils.data import BatchSampler, Dataset
from torch.utils.data.distributed import DistributedSampler

from eenet.rank_zero import rank_zero_warn

Order = Literal["shuffled", "balanced"]
"""How the samples of an epoch are drawn."""


Sampler = TypeVar("Sampler", bound=DistributedSampler)


def unrepeated(sampler: Sampler) -> Sampler:
    """Let a sampler deal each item out once, where torch's repeats some so that all processes get as many.

    The first processes then have an item more than the others; `Batches` gives all of them as many batches.
    """
    samples: Any = sampler.lengths if hasattr(sampler, "lengths") else sampler.dataset  # of texts, or any
    sampler.total_size = len(samples)
    sampler.num_samples = len(range(sampler.rank, sampler.total_size, sampler.num_replicas))
    return sampler


class EpochSampler(DistributedSampler):
    """torch's distributed sampler, which also tells an augmented data set its epoch and can balance the classes.

    Balanced, an epoch draws as many samples as there are, with replacement, so that every class is as likely: the
    class-balanced sampling of Kang et al., "Decoupling Representation and Classifier", ICLR 2020, equation 1 at q = 0.
    Either way the order is a function of the seed and the epoch, and processes share it.

    Args:
        dataset: With `labels`, `(items,)`; one whose `epoch` is a number is given the epoch.
        processes: Number of processes and the number of this one.
        seed: Of the order.
        order: Shuffled or balanced.
    """

    def __init__(self, dataset: Dataset, processes: tuple[int, int], seed: int, order: Order = "shuffled") -> None:
        super().__init__(dataset, *processes, shuffle=True, seed=seed)
        self.order = order
        unrepeated(self)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of an epoch, counted from 0."""
        super().set_epoch(epoch)
        if getattr(self.dataset, "epoch", None) is not None:
            self.dataset.epoch = epoch  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[int]:
        if self.order == "shuffled":
            return super().__iter__()
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        labels = torch.from_numpy(self.dataset.labels)  # type: ignore[attr-defined]
        likely = labels.bincount().double().reciprocal()[labels]
        drawn = likely.multinomial(self.total_size, replacement=True, generator=generator)
        return iter(drawn[self.rank :: self.num_replicas].tolist())


class Batches(BatchSampler):
    """Training batches of rows; a last one with fewer than two rows for every process joins the one before.

    Normalisation over a batch has no variance to learn from in a batch of one. The rule holds for every training
    loader, so that features and raw inputs, and all methods, train on the same batches; together, those of several
    processes are the batches of one process whose batch size is their sum.

    Args:
        sampler: The order of the rows; of several processes, the rows of this one.
        batch_size: Rows per batch and process; the last batch may have fewer, or one or two more.
        drop_last: As torch's; Lightning passes it when it makes a sampler anew.

    Example:
        >>> [len(batch) for batch in Batches(range(9), 4)], [len(batch) for batch in Batches(range(10), 4)]
        ([4, 5], [4, 4, 2])
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.processes = getattr(sampler, "num_replicas", 1)

    @property
    def samples(self) -> int:
        """Rows of all processes."""
        return getattr(self.sampler, "total_size", len(self.sampler))  # type: ignore[arg-type]

    @property
    def joined(self) -> int:
        """Rows of all processes that join the last batch."""
        left = self.samples % (self.batch_size * self.processes)
        joins = not self.drop_last and left < min(self.samples, 2 * self.processes)
        return left if joins else 0

    def __len__(self) -> int:
        whole, left = divmod(self.samples, self.batch_size * self.processes)
        return whole + (left > 0 and not self.joined and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that the order is settled at the first batch: a resuming trainer makes the iterator before it
        # sets the epoch.
        batches, left = super().__iter__(), len(self)
        for batch in batches:
            left -= 1
            yield batch + next(batches, []) if left == 0 and self.joined else batch


def training_batches(sampler: DistributedSampler, batch_size: int) -> Batches:
    """The batches of a training loader; warns where rows join the last one."""
    batches = Batches(sampler, batch_size)
    if batches.joined:
        rank_zero_warn(
            f"data.batch_size = {batch_size}: training samples left for a last batch ({batches.joined}) join the batch "
            "before it"
        )
    return batches


def in_turn(dataset: Any, processes: tuple[int, int]) -> Any:
    """Deals samples to processes in data set order, none twice; `None` where one process has them all.

    Args:
        dataset: The samples.
        processes: Number of processes and the number of this one.
    """
    if processes[0] == 1:
        return None
    return unrepeated(DistributedSampler(dataset, *processes, shuffle=False))
