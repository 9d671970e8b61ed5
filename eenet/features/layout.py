"""What one sample's features look like, and the space they take."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from eenet.network import ExitFeatures

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The dtypes that features can be stored in."""


@dataclass(frozen=True)
class Layout:
    """Shapes of one sample's arrays, without the batch axis.

    Attributes:
        shapes: Of the features at each early exit.
        num_classes: Width of the last exit's logits, which are always kept in float32.
        dtype: Name of the features' dtype.
    """

    shapes: tuple[tuple[int, ...], ...]
    num_classes: int
    dtype: str

    @classmethod
    def of(cls, sample: ExitFeatures, dtype: str) -> "Layout":
        """The layout of features that were extracted from a batch."""
        shapes = tuple(tuple(rows.shape[1:]) for rows in sample.features)
        return cls(shapes, sample.final_logits.shape[1], dtype)

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every array by name, one per exit and three beside them."""
        features = {f"exit_{i}": (shape, DTYPES[self.dtype]) for i, shape in enumerate(self.shapes)}
        return features | {
            "final_logits": ((self.num_classes,), torch.float32),
            "labels": ((), torch.int64),
            "ids": ((), torch.int64),
        }

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample.

        Example:
            >>> Layout(((128,),) * 7, 10, "float32").sample_bytes
            3640
        """
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.arrays.values())

    def split(self, extracted: ExitFeatures, labels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """The arrays of a batch, each `(batch, ...)`, by name."""
        features = {f"exit_{i}": rows for i, rows in enumerate(extracted.features)}
        return features | {"final_logits": extracted.final_logits, "labels": labels, "ids": ids}
