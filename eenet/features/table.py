"""Extracted features of a data set, read by batched slicing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eenet.network import ExitFeatures


class FeatureTable:
    """The arrays of a data set, in memory or mapped from files: item `rows` is a batch.

    Args:
        arrays: As `Layout.arrays` names them, each `(samples, ...)`.
    """

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.arrays = arrays
        self._exits = [name for name in arrays if name.startswith("exit_")]

    @property
    def ids(self) -> Tensor:
        """Row of every sample in its data set, `(samples,)`, int64."""
        return self.arrays["ids"]

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    def __getitem__(self, rows: Sequence[int] | Tensor) -> tuple[ExitFeatures, Tensor]:
        """Features in float32 and labels of some rows."""
        index = torch.as_tensor(rows)
        features = [self.take(name, index).float() for name in self._exits]
        return ExitFeatures(features, self.take("final_logits", index)), self.take("labels", index)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Some rows of an array, `(rows, ...)`, in its own dtype."""
        return self.arrays[name].index_select(0, index)
