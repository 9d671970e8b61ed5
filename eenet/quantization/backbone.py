"""Static quantization: a backbone with all stages at one width, under any exits, gates and routine."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import Tensor

from eenet.backbones import StagedBackbone
from eenet.backbones.base import State
from eenet.errors import UserError
from eenet.quantization.twins import Twins


class QuantizedBackbone(Twins, StagedBackbone):
    """A backbone whose stages run at one width by the simulated quantizer, and all around them at another.

    A routine calibrates it before a new training, and keeps codes and ranges in the checkpoint. They are made of the
    float backbone, whose run `backbone_checkpoint` names; it cannot be trained here.

    Args:
        backbone: The float backbone, in evaluation mode whenever it runs.
        width: Bits of the weights of every stage: 32 (float), 16, 8, 6, 4, 3 or 2; activations have at least 4.
        calibration_batches: Evaluation batches of training inputs that it is calibrated with.
        rest_width: Bits of attention's products, the embedding and the backbone's own head: 8, 4 or 32.
        edge_width: Least bits of the first and the last layer of the stages, such as 8; the same as all by default.

    Raises:
        UserError: A width without a grid, a backbone that is quantized already, or an empty calibration set.
    """

    trainable: ClassVar[bool] = False

    def __init__(
        self,
        backbone: StagedBackbone,
        width: int = 8,
        calibration_batches: int = 4,
        rest_width: int = 8,
        edge_width: int | None = None,
    ) -> None:
        super().__init__()
        if calibration_batches < 1:
            raise UserError(
                "backbone.calibration_batches", calibration_batches, "an empty calibration set gives no ranges"
            )
        self.backbone, self.width, self.calibration_batches = backbone, width, calibration_batches
        self.num_stages, self.num_classes = backbone.num_stages, backbone.num_classes
        self.feature_dims, self.map_dims = backbone.feature_dims, backbone.map_dims
        self.input_shape, self.max_tokens = backbone.input_shape, backbone.max_tokens
        self.prepare_twins([width], "backbone.width", rest_width, edge_width)
        self.stage_bitops = self.stage_bitops_at(width)
        self.outer_bitops = self.outer_bitops_at(width)

    @property
    def plain(self) -> StagedBackbone:
        """The float backbone."""
        return self.backbone

    @property
    def quantization(self) -> dict[str, Any]:
        """The widths of its parts, and the layers that are quantized and those not."""
        return {**self.describe_twins(), "parts": self.part_rows({})}

    def prepare(self, inputs: Callable[[str, int], Iterable[Any]]) -> list[Tensor]:
        """The ranges of the activations, and which are used."""
        return self.take_ranges(inputs, self.calibration_batches)

    def embed(self, inputs: Any) -> State:
        """As the float backbone, at the width of what is in no stage."""
        return self.twin(self.width).embed(inputs)

    def run_stage(self, i: int, state: State) -> State:
        """Run stage `i`, counted from 0, at the width."""
        return self.twin(self.width).run_stage(i, state)

    def features(self, i: int, state: State) -> Tensor:
        """As the float backbone."""
        return self.backbone.features(i, state)

    def feature_map(self, i: int, state: State) -> Tensor:
        """As the float backbone."""
        return self.backbone.feature_map(i, state)

    def classify(self, state: State) -> Tensor:
        """As the float backbone, at the width of what is in no stage."""
        return self.twin(self.width).classify(state)

    def example_input(self) -> Any:
        """As the float backbone."""
        return self.backbone.example_input()

    def description(self) -> dict[str, Any]:
        """The float backbone's, and the width."""
        return {**self.backbone.description(), "width": self.width}
