"""Data that are already there: a plain LightningDataModule, or loaders, whose batches are pairs or dicts."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import GeneratorType
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from datamodules.base import RunData, Split
from eenet.errors import WHERE, UserError, said

SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

STAGES = {"train": "fit", "val": "validate", "test": "test"}


class OwnData(RunData):
    """A LightningDataModule, or loaders, as they are; the data need no class of eenet.

    Batches are pairs `(inputs, labels)`, or dicts whose keys are named here. Labels are one class number per sample.
    Nothing is known of such data before a batch comes, so batches are checked when they do.

    Args:
        data: The data module.
        train: A loader of training batches, where there is no data module.
        val: A loader of validation batches, in a fixed order.
        test: A loader of test batches, in a fixed order.
        inputs: Key of the inputs in a batch, or keys of which the inputs become a dict; `null` for all but the labels.
        labels: Key of the labels in a batch; `null` where batches are pairs.
        name: Of the data, in results; the class of the data module, by default.

    Raises:
        UserError: Neither a data module nor a training loader is given, or both.
    """

    num_classes: int | None = None  # type: ignore[assignment]

    def __init__(
        self,
        data: LightningDataModule | None = None,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        inputs: str | list[str] | None = None,
        labels: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if (data is None) == (train is None and val is None and test is None):
            raise UserError("data.data", type(data).__name__, "give a LightningDataModule, or loaders, and not both")
        if inputs is not None and labels is None:
            raise UserError("data.labels", None, "name the key of the labels too")
        self.data, self.loaders = data, {"train": train, "val": val, "test": test}
        self.inputs, self.labels = inputs, labels
        self.name = name or ("loaders" if data is None else type(data).__name__)
        self._ready: set[str] = set()
        self._digests: dict[str, str] = {}

    def prepare_data(self) -> None:
        """As the data module."""
        if self.data is not None:
            self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """As the data module."""
        if self.data is not None:
            self.data.trainer = self.trainer
            self.data.setup(stage)
            self._ready.add(stage)

    def _loader(self, split: Split) -> Any:
        if split not in STAGES:
            raise UserError("split", split, f"must be one of {', '.join(STAGES)}")
        if self.data is None:
            loader = self.loaders[split]
        else:
            if not self._ready & {STAGES[split], "fit" if split != "test" else "test"}:
                self.setup(STAGES[split])
            try:
                loader = getattr(self.data, f"{split}_dataloader")()
            except Exception as error:
                if "dataloader" not in str(error):  # Lightning's own word for a hook that is missing
                    raise
                loader = None
        if isinstance(loader, list | tuple) and len(loader) == 1:
            loader = loader[0]
        if loader is None or isinstance(loader, list | tuple | dict):
            raise UserError("data", self.name, f"must have one loader of {split} batches")
        if isinstance(loader, GeneratorType | map | zip):
            raise UserError("data", self.name, f"gives its {split} batches once and never again; give a loader")
        if split != "train" and isinstance(getattr(loader, "sampler", None), SHUFFLING):
            raise UserError("data", self.name, f"the {split} loader shuffles; points need a fixed order: shuffle=False")
        return loader

    def train_dataloader(self) -> Any:
        """The training loader as it is."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """The validation loader as it is."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """The test loader as it is."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """The test loader."""
        return self._loader("test")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """A batch as a pair, for Lightning's loops."""
        return self.pair(batch)

    def loader(self, split: Split) -> DataLoader:
        """The batches of a split as pairs."""
        return Pairs(self._loader(split), self)  # type: ignore[return-value]

    def pair(self, batch: Any) -> Any:
        """A batch as `(inputs, labels)`.

        Raises:
            UserError: It is a dict without the keys that are named, or none are named.
        """
        if not isinstance(batch, Mapping):
            return batch
        keys = ", ".join(map(str, batch))
        if self.labels is None:
            raise UserError("data.labels", None, f"a batch is a dict of {keys}; wrap the data in datamodules.OwnData")
        wanted = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        wanted = [key for key in batch if key != self.labels] if wanted is None else wanted
        missing = [key for key in (*wanted, self.labels) if key not in batch]
        if missing:
            field = "data.labels" if missing == [self.labels] else "data.inputs"
            raise UserError(field, missing[0], f"a batch is a dict of {keys}; name one of them")
        inputs = {key: batch[key] for key in wanted}
        return inputs[self.inputs] if isinstance(self.inputs, str) else inputs, batch[self.labels]

    def fingerprint(self, split: Split, augmented: bool = False) -> str:
        """Hex digest of a split's batches, which are read once for it."""
        if split not in self._digests:
            content = hashlib.sha256()
            for batch in self.loader(split):
                for leaf in pytree.tree_leaves(batch):
                    if isinstance(leaf, Tensor):
                        content.update(f"{leaf.dtype} {tuple(leaf.shape)}\n".encode())
                        content.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._digests[split] = content.hexdigest()
        return self._digests[split]

    def split_record(self) -> dict[str, Any]:
        """The name and what a batch holds."""
        return {"name": self.name, "inputs": self.inputs, "labels": self.labels}


class Pairs:
    """The batches of a loader as pairs.

    Args:
        loader: Any iterable of batches.
        data: Says which keys are what.

    Raises:
        UserError: The loader or its data set raises, or a batch is no pair and cannot become one.
    """

    def __init__(self, loader: Any, data: OwnData) -> None:
        self.loader, self.data = loader, data
        self.dataset: Sequence[Any] = getattr(loader, "dataset", loader)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        number = 1
        try:
            for batch in self.loader:
                yield self.data.pair(batch)
                number += 1
        except (MemoryError, UserError):
            raise
        except Exception as error:
            problem = f"its batch {number} cannot be read ({said(error)}); {WHERE}"
            raise UserError("data", self.data.name, problem) from error
