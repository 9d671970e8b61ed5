"""What every data module here offers: a fixed stratified split, its loaders, and a fingerprint of its content."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from datamodules.loader import make_loader
from datamodules.samplers import EpochSampler, Order, in_turn, training_batches
from datamodules.splits import (
    Labels,
    Rare,
    Rows,
    check_classes,
    check_labels,
    digest,
    integer_bytes,
    single_classes,
    stratified_split,
)
from eenet.described import Described
from eenet.errors import UserError
from eenet.features import FeatureOptions
from eenet.late import Late
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule as DataModule
else:

    class DataModule(Late):
        """The base of all data, which are Lightning's data modules where they may be trained on."""

        late = "lightning.pytorch.LightningDataModule"
        trainer = None


Split = Literal["train", "val", "test"]

TEST_FRACTION = 0.2
"""Share of a data set without a test split that becomes one, always with seed 0."""


@dataclass(frozen=True)
class Samples:
    """Labelled samples as they are stored.

    Attributes:
        inputs: The raw inputs, indexed by row.
        labels: Class of every row, `(samples,)`, int64.
        source: The file or folder they come from, for messages.
    """

    inputs: Any
    labels: Labels
    source: str


class SplitDataset(Dataset, ABC):
    """Some rows of labelled samples, ready for a model: item `i` is `(inputs, label)`.

    Args:
        samples: The samples as stored.
        rows: The rows of this split, ascending.
    """

    def __init__(self, samples: Samples, rows: Rows) -> None:
        self.inputs, self.rows = samples.inputs, rows
        self.labels = samples.labels[rows]
        """Class of every item, `(items,)`, int64."""

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def __getitem__(self, item: int) -> tuple[Any, int]: ...

    def __getitems__(self, items: list[int]) -> list[tuple[Any, int]] | UserError:
        """Several items, or the mistake that keeps them from being read, for `datamodules.loader`."""
        try:
            return [self[item] for item in items]
        except UserError as error:
            return error

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """Bytes that change whenever an input of this split would."""


class RunData(Described, DataModule, ABC):
    """What the data of every run offer: a fixed split into `train`, `val` and `test`, kept in the checkpoint.

    Attributes:
        name: Name of the data set, lower case.
        num_classes: Number of classes.
        input_shape: `(channels, height, width)` after the transform, `None` for text.
        max_length: The most tokens of a text, `None` for images.
        of_tokens: Whether the samples are tokens, which a decoder reads.
        recalled: Names or number of the classes, of a checkpoint whose data need not be there.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...] | None = None
    max_length: int | None = None
    of_tokens = False
    recalled: list[str] | int | None = None

    @abstractmethod
    def loader(self, split: Split) -> DataLoader:
        """A plain sequential loader of a split."""

    @abstractmethod
    def fingerprint(self, split: Split, augmented: bool = False) -> str:
        """Hex digest of everything that decides the inputs of a split."""

    @abstractmethod
    def split_record(self) -> dict[str, Any]:
        """The name, seed, sizes and digests of the splits, as plain JSON values."""

    def prepare_data(self) -> None:
        """Download where asked, read and check everything, on one process, before the others start."""

    def setup(self, stage: str) -> None:
        """Nothing to do for a stage."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A batch on a device; nothing to do on the CPU, where a walk through it costs more than slicing features."""
        if device.type == "cpu":
            return batch
        return pytree.tree_map(lambda leaf: leaf.to(device, non_blocking=True) if hasattr(leaf, "to") else leaf, batch)

    @property
    def processes(self) -> tuple[int, int]:
        """Number of processes and the number of this one, `(1, 0)` without a trainer."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def recall(self, record: dict[str, Any]) -> None:
        """Take from a checkpoint's split record what is asked of data that need not be there: their classes."""
        self.recalled = record.get("classes")

    def state_dict(self) -> dict[str, Any]:
        """The split record, which Lightning keeps in the checkpoint."""
        return self.split_record()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise a `UserError` for a checkpoint made on another split."""
        record = self.split_record()
        for key, value in record.items():
            if state_dict.get(key) != value and (key != "classes" or key in state_dict):  # records of before had none
                problem = f"the checkpoint was made on another split: its {key} is {state_dict.get(key)!r}"
                raise UserError(f"data ({key})", value, f"{problem}; use the data settings it was made with")


class SplitData(RunData):
    """A classification data set with a fixed split into `train`, `val` and `test`.

    Subclasses set the attributes and implement `read` and `build`. Data are read once, at first use.

    Args:
        batch_size: Training samples per batch and process; a last batch of one sample joins the one before.
        eval_batch_size: Samples per batch wherever nothing is trained.
        num_workers: Loader processes; 0 loads in the main process.
        validation_fraction: Share of the training samples held out for validation, between 0 and 1.
        seed: Decides the validation split and the order of every epoch.
        sampler: `shuffled`, or `balanced` to draw training samples with replacement, all classes as likely.
        rare: What becomes of a class of one sample where a split is cut: an `error`, or it stays in `train`, so that no
            figure of the splits that are cut off covers it.
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        validation_fraction: float = 0.1,
        seed: int = 0,
        sampler: Order = "shuffled",
        rare: Rare = "error",
    ) -> None:
        super().__init__()
        check_at_least("data.batch_size", batch_size, 1)
        check_at_least("data.eval_batch_size", eval_batch_size, 1)
        check_at_least("data.num_workers", num_workers, 0)
        check_at_least("data.seed", seed, 0)
        if not 0 < validation_fraction < 1:
            raise UserError("data.validation_fraction", validation_fraction, "must lie between 0 and 1")
        for field, value, known in (("sampler", sampler, get_args(Order)), ("rare", rare, get_args(Rare))):
            if value not in known:
                raise UserError(f"data.{field}", value, f"must be one of {', '.join(known)}")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.validation_fraction, self.seed = validation_fraction, seed
        self.sampler, self.rare = sampler, rare

    kept: Any = None
    """What loads training and validation batches of features instead, see `keep_features`."""

    def keep_features(self, network: EarlyExitNetwork, options: FeatureOptions | None) -> None:
        """Train and validate from what a frozen backbone's exits read, extracted at first use.

        Testing and predicting read the raw inputs.

        Args:
            network: The network whose backbone is frozen.
            options: Where features are kept, and of what; `None` for inputs as they are.

        Raises:
            UserError: Views are asked for and the data are not augmented.
        """
        from datamodules.features import FeatureLoaders

        self.kept = None if options is None else FeatureLoaders(self, network, options)

    def training_features(
        self, network: EarlyExitNetwork, options: FeatureOptions | None, most: int
    ) -> Iterator[tuple[ExitFeatures, Tensor]]:
        """See `datamodules.features.training_features`."""
        from datamodules.features import training_features

        return training_features(self, network, options, most)

    @abstractmethod
    def read(self) -> tuple[Samples, Samples | None]:
        """The training and the test samples as stored; `None` where the data set has no test split."""

    @abstractmethod
    def build(self, samples: Samples, rows: Rows, augmented: bool) -> SplitDataset:
        """Some rows of the samples behind the evaluation or the augmenting transform."""

    def read_validation(self) -> Samples | None:
        """The validation samples as stored; `None` where they are cut off the training samples."""
        return None

    def keep(self, labels: Labels) -> Rows:
        """The training rows in use, before validation is cut off; all by default."""
        return np.arange(len(labels))

    @property
    def collate(self) -> Callable | None:
        """How items become a batch; `None` for torch's default."""
        return None

    @cached_property
    def _splits(self) -> dict[str, tuple[Samples, Rows]]:
        (train, test), val = self.read(), self.read_validation()
        for samples in filter(None, (train, val, test)):
            check_labels(samples.labels, self.num_classes, samples.source)
        rows = np.arange(len(train.labels))
        if test is None:
            rows, test_rows = stratified_split(train.labels, rows, TEST_FRACTION, 0, "data", self.rare)
            test = train
        else:
            test_rows = np.arange(len(test.labels))
        rows = rows[self.keep(train.labels[rows])]
        check_classes(train.labels[rows], self.num_classes, train.source)
        if val is not None:
            return {"train": (train, rows), "val": (val, np.arange(len(val.labels))), "test": (test, test_rows)}
        fraction = self.validation_fraction
        alone = single_classes(train.labels[rows])
        rows, val_rows = stratified_split(
            train.labels, rows, fraction, self.seed, "data.validation_fraction", self.rare
        )
        if len(alone):
            rank_zero_warn(
                f"data.rare = 'train': the only sample of class {', '.join(map(str, alone))} stays in training; "
                f"validation judges {len(set(train.labels[val_rows]))} of {self.num_classes} classes"
            )
        return {"train": (train, rows), "val": (train, val_rows), "test": (test, test_rows)}

    def prepare_data(self) -> None:
        """Read and check everything."""
        _ = self._splits

    def dataset(self, split: Split, augmented: bool = False) -> SplitDataset:
        """One split as a data set of `(inputs, label)`, in data set order.

        Args:
            split: Which split.
            augmented: Put training samples through the augmenting transform; other splits are never augmented.

        Raises:
            UserError: If there is no such split, or the data are missing or damaged.
        """
        if split not in get_args(Split):
            raise UserError("split", split, f"must be one of {', '.join(get_args(Split))}")
        samples, rows = self._splits[split]
        return self.build(samples, rows, augmented and split == "train")

    def loader(self, split: Split, augmented: bool = False) -> DataLoader:
        """A plain sequential loader of a split, in data set order, for features and calibration."""
        return self.load(self.dataset(split, augmented), batch_size=self.eval_batch_size)

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches; the order of an epoch is a function of the seed and the epoch."""
        if self.kept is not None:
            return self.kept.train_dataloader()
        dataset = self.train_dataset()
        return self.load(dataset, batch_sampler=training_batches(self.train_sampler(dataset), self.batch_size))

    def val_dataloader(self) -> DataLoader:
        """Validation batches, in data set order; the training batches themselves where the trainer overfits them."""
        if self.kept is not None:
            return self.kept.val_dataloader()
        if self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self.load(self.dataset("train"), batch_size=self.batch_size)
        return self.dealt("val")

    def test_dataloader(self) -> DataLoader:
        """Test batches, in data set order."""
        return self.dealt("test")

    def dealt(self, split: Split) -> DataLoader:
        """As `loader`; of several processes each has its own samples, and no sample comes twice."""
        if self.processes[0] == 1:
            return self.loader(split)
        dataset = self.dataset(split)
        return self.load(dataset, batch_size=self.eval_batch_size, sampler=in_turn(dataset, self.processes))

    def predict_dataloader(self) -> DataLoader:
        """The test batches."""
        return self.loader("test")

    def train_dataset(self) -> SplitDataset:
        """The samples that `train_dataloader` draws from."""
        return self.dataset("train")

    def train_sampler(self, dataset: SplitDataset) -> DistributedSampler:
        """The order of training samples; Lightning sets its epoch and leaves a `DistributedSampler` as it is."""
        return EpochSampler(dataset, self.processes, self.seed, self.sampler)

    def load(self, dataset: Dataset, **options: Any) -> DataLoader:
        """A loader of a split or of a part of one, with the options of `DataLoader`."""
        pin = torch.cuda.is_available()
        return make_loader(dataset, self.collate, num_workers=self.num_workers, pin_memory=pin, **options)

    def fingerprint(self, split: Split, augmented: bool = False) -> str:
        """Hex digest of everything that decides the inputs of a split: samples, labels, rows and transform."""
        dataset = self.dataset(split, augmented)
        rows, labels = integer_bytes(dataset.rows), integer_bytes(dataset.labels)
        return digest([self.name.encode(), rows, labels, *dataset.content()])

    @property
    def cut(self) -> list[str]:
        """The splits that are cut off the training samples."""
        train = self._splits["train"][0]
        return [split for split in ("val", "test") if self._splits[split][0] is train]

    def sample_ids(self, split: Split) -> set[str]:
        """What tells the samples of a split from others on this machine: paths of files, else source and row."""
        samples, rows = self._splits[split]
        if hasattr(samples.inputs, "names"):
            return {os.path.abspath(name) for name in samples.inputs.names[rows]}
        return {f"{samples.source}#{row}" for row in rows}

    def split_record(self) -> dict[str, Any]:
        """The name, seed, sizes and row digests of the splits, and classes of one sample, as plain JSON values."""
        rows = {split: rows for split, (_, rows) in self._splits.items()}
        (train, _), (val, _) = self._splits["train"], self._splits["val"]
        labels = train.labels[np.concatenate([rows["train"], rows["val"]]) if val is train else rows["train"]]
        alone = single_classes(labels).tolist()
        return {
            "name": self.name,
            "seed": self.seed,
            "sizes": {split: len(rows) for split, rows in rows.items()},
            "digest": {split: hashlib.sha256(integer_bytes(rows)).hexdigest() for split, rows in rows.items()},
            **({"rare": alone} if alone else {}),
        }


def check_at_least(field: str, value: float, least: float) -> None:
    """Raise a `UserError` where a value is below the least that makes sense."""
    if value < least:
        raise UserError(field, value, f"must be at least {least}")
