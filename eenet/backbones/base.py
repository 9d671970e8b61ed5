"""The contract that every backbone family keeps: a model cut into stages that can be run one at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.described import Described
from eenet.errors import UserError

State = Any
"""A pytree of tensors whose first axis is the batch."""


def select(state: State, keep: Tensor) -> State:
    """Keep some samples of a state.

    Args:
        state: Pytree of tensors whose first axis is the batch.
        keep: Row indices to keep, `(kept,)`, int64.

    Returns:
        The same pytree with `kept` rows, in the order of `keep`.

    Example:
        >>> select({"x": torch.arange(4)}, torch.tensor([2, 0]))["x"]
        tensor([2, 0])
    """
    return pytree.tree_map(lambda rows: rows.index_select(0, keep), state)


def to_device(inputs: Any, network: nn.Module) -> Any:
    """Inputs where the network's weights are, floats in their dtype."""
    weight = next(network.parameters())
    return pytree.tree_map(
        lambda rows: rows.to(weight.device, weight.dtype if rows.is_floating_point() else rows.dtype), inputs
    )


class StagedBackbone(Described, nn.Module, ABC):
    """A classifier cut into stages, so that computation can stop after any of them.

    The law: `embed`, then every `run_stage` in order, then `classify` gives the original model's output to float
    precision. Subclasses set the attributes below and implement the abstract methods.

    Attributes:
        num_stages: Number of stages.
        num_classes: Width of the logits.
        feature_dims: Width of `features(i, state)` for each stage.
        map_dims: Channels of `feature_map(i, state)` for each stage, `None` for a family without one.
        input_shape: Shape of one input without the batch axis, `None` for text.
        max_tokens: The most tokens of a text that it takes, `None` for images.
        trainable: Whether gradients reach its weights.
        stage_bitops: BitOPs of each stage where stages are quantized, `None` where they are not.
        outer_bitops: Those of what comes before the stages and of the backbone's own head.
        stage_names: What stages are called in a configuration, `None` for a family that numbers them.
    """

    trainable: ClassVar[bool] = True
    stage_bitops: tuple[int, ...] | None = None
    outer_bitops: tuple[int, int] | None = None

    num_stages: int
    num_classes: int
    feature_dims: list[int]
    map_dims: list[int] | None = None
    input_shape: tuple[int, ...] | None = None
    max_tokens: int | None = None
    stage_names: list[str] | None = None

    @property
    def plain(self) -> "StagedBackbone":
        """The backbone in floating point, whose MACs are counted: itself where it is not quantized."""
        return self

    def find_stage(self, name: str) -> int:
        """The stage with a name.

        Raises:
            UserError: There is none.
        """
        names = self.stage_names or []
        if name in names:
            return names.index(name)
        near = ", ".join(get_close_matches(name, names, 3)) or ", ".join(names[:3])
        problem = (
            f"no stage of {type(self).__name__} ends there; near it: {near}"
            if names
            else "its stages have no names; give a list of stage numbers"
        )
        raise UserError("network.exits", name, problem)

    @abstractmethod
    def embed(self, inputs: Any) -> State:
        """What comes before the first stage (patch embedding, stem, token embedding)."""

    @abstractmethod
    def run_stage(self, i: int, state: State) -> State:
        """Run stage `i`, counted from 0."""

    @abstractmethod
    def features(self, i: int, state: State) -> Tensor:
        """The pooled representation after stage `i`, `(batch, feature_dims[i])`, that a vector head reads.

        Its work counts in that head, as a feature map's does.
        """

    def feature_map(self, i: int, state: State) -> Tensor:
        """The unpooled representation after stage `i`, `(batch, map_dims[i], height, width)`, for a pooling head."""
        raise NotImplementedError(f"{type(self).__name__} has no feature map")

    @abstractmethod
    def classify(self, state: State) -> Tensor:
        """The model's own head, after the last stage: logits `(batch, classes)`."""

    def example_input(self) -> Any:
        """One input with a batch axis of 1, on the CPU, for counting MACs: a black image unless overridden."""
        if self.input_shape is None:
            raise NotImplementedError(f"{type(self).__name__} takes no images and must make its own example")
        return torch.zeros(1, *self.input_shape)

    @property
    def quantization(self) -> dict[str, Any]:
        """How it is quantized, as plain JSON values; nothing where it is not."""
        return {}

    def prepare(self, inputs: Callable[[str, int], Iterable[Any]]) -> list[Tensor]:
        """See `eenet.network.EarlyExitNetwork.prepare`; nothing by default."""
        return []

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What identifies the architecture (plain JSON values): two backbones that agree share checkpoints."""

    def forward(self, inputs: Any) -> Tensor:
        """Logits `(batch, classes)` of the whole model."""
        state = self.embed(inputs)
        for i in range(self.num_stages):
            state = self.run_stage(i, state)
        return self.classify(state)
