"""The contract of an inference module, and running those of all exits together."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from eenet.described import Described

Reads = Literal["vector", "map"]
"""What a head reads: `StagedBackbone.features` or `StagedBackbone.feature_map`."""


class InferenceModule(Described, nn.Module):
    """A classifier on the features of one stage; subclasses take `(dim, num_classes)` first.

    Attributes:
        reads: `vector` for `(batch, dim)`, `map` for `(batch, dim, height, width)`.
    """

    reads: ClassVar[Reads] = "vector"

    @staticmethod
    def run_batched(modules: Sequence["InferenceModule"], features: Sequence[Tensor]) -> Tensor | None:
        """Logits of several exits in one kernel, `(batch, exits, classes)`; `None` if these cannot be batched."""
        return None


def run_inference_modules(modules: Sequence[InferenceModule], features: Sequence[Tensor]) -> Tensor:
    """Run one inference module per exit.

    Args:
        modules: One per exit.
        features: What each reads, `(batch, dim, ...)`.

    Returns:
        Logits, `(batch, exits, classes)`.
    """
    kind = type(modules[0])
    if all(type(module) is kind for module in modules):
        logits = kind.run_batched(modules, features)
        if logits is not None:
            return logits
    return torch.stack([module(rows) for module, rows in zip(modules, features, strict=True)], dim=1)
