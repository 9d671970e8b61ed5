"""What the image families share: stages that are blocks, a state that is one tensor, and a description."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from eenet.backbones.base import StagedBackbone, State


class ImageBackbone(StagedBackbone):
    """A backbone of images that runs a block per stage; a feature map is its state unless a family says otherwise.

    Attributes:
        input_shape: `(channels, height, width)` of one image.
        model: The library's model.
        architecture: What identifies the model beside its classes and input shape, as plain JSON values.
    """

    input_shape: tuple[int, int, int]
    model: Any
    architecture: dict[str, Any]

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """What the stages run, in order."""

    def run_stage(self, i: int, state: State) -> State:
        """Block `i`."""
        return self.blocks[i](state)

    def features(self, i: int, state: State) -> Tensor:
        """Mean over the positions, `(batch, channels)`."""
        return state.mean(dim=(2, 3))

    def feature_map(self, i: int, state: State) -> Tensor:
        """The map itself, `(batch, channels, height, width)`."""
        return super().feature_map(i, state) if self.map_dims is None else state

    def description(self) -> dict[str, Any]:
        """Family, classes, input shape and architecture."""
        return {
            "family": type(self).__name__,
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            **self.architecture,
        }
