"""Training and validation batches of stored features, in the order of the raw ones."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

from datamodules.base import Split, SplitData
from datamodules.loader import Loader
from datamodules.samplers import in_turn, training_batches
from eenet.backbones.base import to_device
from eenet.cluster import Cluster
from eenet.errors import UserError
from eenet.features import FeatureOptions, FeatureTable, Source, disk_table, feature_key, memory_table
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.rank_zero import rank_zero_info

EXTRACTED = 12_000
"""Training samples that the backbone runs on where policies are fitted to some and no store has their features."""


class Views(Dataset):
    """A table per augmented view, of which an epoch reads one."""

    def __init__(self, tables: list[FeatureTable]) -> None:
        self.tables, self.current = tables, tables[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of an epoch, counted from 0."""
        self.current = self.tables[epoch % len(self.tables)]

    def __len__(self) -> int:
        return len(self.current)

    def __getitems__(self, rows: list[int]) -> tuple[ExitFeatures, Tensor]:
        """A batch."""
        return self.current[rows]


class ViewSampler(DistributedSampler):
    """The order of a sampler, which also tells the views the epoch.

    Being a `DistributedSampler` makes Lightning set its epoch and leave it as it is.
    """

    def __init__(self, sampler: DistributedSampler, views: Views) -> None:
        self.sampler, self.views = sampler, views
        self.num_replicas, self.total_size = sampler.num_replicas, sampler.total_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the view of an epoch, counted from 0."""
        self.sampler.set_epoch(epoch)
        self.views.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)


class FeatureLoaders:
    """Training and validation batches of a frozen backbone's features instead of a data set's inputs.

    Args:
        data: The data module.
        network: The network whose backbone is frozen.
        options: Where features are kept, and of what.

    Raises:
        UserError: Views are asked for and the data are not augmented.
    """

    def __init__(self, data: SplitData, network: EarlyExitNetwork, options: FeatureOptions) -> None:
        if options.views and not getattr(data, "augment", False):
            remedy = f"{data.name} is not augmented; set data.augment or views: 0"
            raise UserError("model.features.views", options.views, remedy)
        self.data, self.network, self.options = data, network, options

    @property
    def views(self) -> list[int | None]:
        """The augmented views of the training samples; `None` for the one behind the evaluation transform."""
        return list(range(self.options.views)) or [None]

    def fill(self, cluster: Cluster | None) -> None:
        """Extract what training and validation read, here or on a cluster."""
        for view in self.views:
            self.table("train", view, cluster)
        self.table("val", None, cluster)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of features, the same samples as the raw batches'."""
        tables = Views([self.table("train", view) for view in self.views])
        sampler = ViewSampler(self.data.train_sampler(self.data.train_dataset()), tables)
        return load_whole(tables, batch_sampler=training_batches(sampler, self.data.batch_size))

    def val_dataloader(self) -> DataLoader:
        """Batches of features in data set order."""
        tables = Views([self.table("val")])
        return load_whole(tables, sampler=in_turn(tables, self.data.processes), batch_size=self.data.eval_batch_size)

    def table(self, split: Split, view: int | None = None, cluster: Cluster | None = None) -> FeatureTable:
        """The features of a split behind the evaluation transform, or of one augmented view of it.

        Args:
            split: Which split.
            view: Which view.
            cluster: Extracts what is kept on disk.
        """
        source = self.source(split, view)
        layout = source.layout(self.options.dtype)
        size = len(source) * layout.sample_bytes
        place: Path | str = "memory"
        if self.options.store == "disk":
            place = Path(self.options.folder, feature_key(self.network, self.content(split, view), layout.dtype))
        rank_zero_info(f"features of {source.name}: {len(source):,} samples, {size / 1e6:,.1f} MB in {place}")
        return disk_table(source, layout, place, cluster) if isinstance(place, Path) else memory_table(source, layout)

    def content(self, split: Split, view: int | None = None) -> str:
        """What identifies the samples of a split, or of one augmented view of it."""
        if view is None:
            return self.data.fingerprint(split)
        return f"{self.data.fingerprint(split, augmented=True)} seed {self.data.seed} view {view}"

    def source(self, split: Split, view: int | None = None) -> Source:
        """What `table` extracts from."""
        dataset = self.data.dataset(split, augmented=view is not None)
        if view is not None:
            dataset.epoch = view  # type: ignore[attr-defined]

        name = f"{self.data.name} {split}" + ("" if view is None else f", view {view}")
        load = partial(load_rows, self.data, dataset)
        return Source(name, self.network, load, torch.from_numpy(dataset.labels), torch.from_numpy(dataset.rows))


def load_rows(data: SplitData, dataset: Dataset, rows: range) -> DataLoader:
    """Batches of a range of samples, as an evaluation reads them."""
    return data.load(Subset(dataset, rows), batch_size=data.eval_batch_size)


def load_whole(dataset: Dataset, **options: Any) -> Loader:
    """A loader of a data set whose `__getitems__` gives a batch; options as for `DataLoader`."""
    return Loader(dataset, collate_fn=whole, pin_memory=torch.cuda.is_available(), **options)


def whole(batch: Any) -> Any:
    """A batch as it was sliced."""
    return batch


def training_features(
    data: SplitData, network: EarlyExitNetwork, options: FeatureOptions | None, most: int
) -> Iterator[tuple[ExitFeatures, Tensor]]:
    """Features and labels of some training samples as an evaluation sees them, spread evenly, batch by batch.

    Where features are kept on disk they come from the store, which is filled first where it is not; else the backbone
    runs on at most `EXTRACTED` samples.

    Args:
        data: Whose training samples.
        network: Whose exits read them.
        options: Where features are kept; `None` for nowhere.
        most: Samples at most.
    """
    dataset, stored = data.dataset("train"), options if options is not None and options.store == "disk" else None
    count = min(most, len(dataset), EXTRACTED if stored is None else len(dataset))
    rows = torch.linspace(0, len(dataset) - 1, count, dtype=torch.float64).round().long()
    if stored is not None:
        table = FeatureLoaders(data, network, stored).table("train")
        yield from (to_device(table[part], network) for part in rows.split(data.eval_batch_size))
        return
    for batch in data.load(Subset(dataset, rows.tolist()), batch_size=data.eval_batch_size):
        inputs, labels = to_device(batch, network)
        yield network.extract(inputs), labels
