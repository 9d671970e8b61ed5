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
        self.features = [rows for name, rows in arrays.items() if name.startswith("exit_")]
        self.final_logits, self.labels, self.ids = (arrays[name] for name in ("final_logits", "labels", "ids"))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Sequence[int] | Tensor) -> tuple[ExitFeatures, Tensor]:
        """Features in float32 and labels of some rows."""
        index = torch.as_tensor(rows)
        features = [array.index_select(0, index).float() for array in self.features]
        extracted = ExitFeatures(features, self.final_logits.index_select(0, index))
        return extracted, self.labels.index_select(0, index)
