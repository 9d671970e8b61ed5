"""A float backbone at several bit-widths on one copy of its weights, and the ranges that its activations need."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.quantization.grid import activation_grid, check_widths
from eenet.quantization.layers import NATIVE_WIDTH, SimulatedLayer, native_layer
from eenet.quantization.ranges import METHODS, activation_ranges
from eenet.quantization.segments import StageLayers, evaluation, replace_layers, stage_layers
from eenet.tree import FLOAT


class Twins(nn.Module):
    """What quantizes a `backbone`, for modules that have one: twins at some widths, ranges kept in the checkpoint.

    Attributes:
        backbone: The float backbone.
        widths: Bits of weights and activations, from the widest to the narrowest.
        native: Run 8 bits by integer products.
        stage_layers: The layers of each stage.
        layer_names: Of the layers that are quantized, in the order of their ranges.
    """

    backbone: StagedBackbone
    widths: tuple[int, ...]
    native: bool
    stage_layers: list[StageLayers]
    layer_names: list[str]
    ranges: Tensor
    range_methods: Tensor

    def prepare_twins(self, widths: Sequence[int], field: str) -> None:
        """Find the layers of the backbone, which is in place, and make room for their ranges.

        Args:
            widths: Bits, from any of `eenet.quantization.WIDTHS`.
            field: Of the configuration, that holds them.

        Raises:
            UserError: A width without a grid, or a backbone that is quantized already.
        """
        self.widths = check_widths(widths, field)
        if isinstance(self.backbone, Twins):
            raise UserError(
                "network.backbone", type(self.backbone).__name__, "is quantized already; give the float one"
            )
        self.native = False
        self.stage_layers = stage_layers(self.backbone)
        self.layer_names = list(dict.fromkeys(name for stage in self.stage_layers for name in stage.layers))
        if not self.layer_names:
            problem = "runs no linear layer or convolution as a module in its stages, so that none can be quantized"
            raise UserError("network.backbone", type(self.backbone).__name__, problem)
        self.register_buffer("ranges", torch.zeros(len(METHODS), len(self.layer_names), 2))
        self.register_buffer("range_methods", torch.zeros(len(self.widths), dtype=torch.long))
        self._twins: dict[tuple[int, bool], StagedBackbone] = {}
        self.register_load_state_dict_post_hook(lambda module, keys: module._twins.clear())

    def take_ranges(self, inputs: Callable[[str, int], Iterable[Any]], batches: int) -> list[Tensor]:
        """Take the ranges from batches of training inputs, and choose among them on as many validation inputs.

        Args:
            inputs: Gives so many batches of a split.
            batches: Of each split.

        Returns:
            The buffers that were set.
        """
        self.calibrate(inputs("train", batches))
        self.choose_ranges(inputs("val", batches))
        return [self.ranges, self.range_methods]

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Take the ranges of the activations from unlabelled inputs; every width starts with `minmax`.

        Raises:
            UserError: There is no batch.
        """
        self.ranges.copy_(activation_ranges(self.backbone, self.layer_names, batches))
        self.range_methods.zero_()
        self._twins.clear()

    @torch.no_grad()
    def choose_ranges(self, batches: Iterable[Any]) -> None:
        """For each width keep the method whose static network is nearest to the float one on unlabelled inputs.

        Nearness is the mean Kullback-Leibler divergence of the float network's probabilities. [inferred]

        Args:
            batches: Inputs, read once per width and method.
        """
        batches = list(batches)
        with evaluation(self.backbone):
            wanted = [self.backbone(batch).log_softmax(-1) for batch in batches]
            for number, width in enumerate(self.widths):
                distances = []
                for method in range(len(METHODS)):
                    self.range_methods[number] = method
                    self._twins.clear()
                    twin = self.twin(width)
                    found = [twin(batch).log_softmax(-1) for batch in batches]
                    pairs = zip(found, wanted, strict=True)
                    distances.append(sum(F.kl_div(*pair, reduction="sum", log_target=True).item() for pair in pairs))
                self.range_methods[number] = distances.index(min(distances))
        self._twins.clear()

    def width_ranges(self, width: int) -> Tensor:
        """The ranges that a width uses, of each layer the lowest and highest value, `(layers, 2)`."""
        return self.ranges[self.range_methods[self.widths.index(width)]]

    def twin(self, width: int) -> StagedBackbone:
        """The backbone with its stages at a width; it shares the weights."""
        if width == FLOAT:
            return self.backbone
        key = width, self.native and width == NATIVE_WIDTH
        if key not in self._twins:
            self._twins[key] = self._make_twin(*key)
        return self._twins[key]

    def _make_twin(self, width: int, native: bool) -> StagedBackbone:
        layers: dict[str, nn.Module] = {}
        for name, (lowest, highest) in zip(self.layer_names, self.width_ranges(width).tolist(), strict=True):
            layer, grid = self.backbone.get_submodule(name), activation_grid(lowest, highest, width)
            integer = native_layer(layer, grid) if native else None
            layers[name] = integer or SimulatedLayer(layer, width, grid)
        return replace_layers(self.backbone, layers)

    def describe_twins(self) -> dict[str, Any]:
        """Plain JSON values: widths, how each one's ranges were chosen, the layers that are quantized and those not."""
        methods = (METHODS[method] for method in self.range_methods.tolist())
        return {
            "widths": list(self.widths),
            "range_methods": {str(width): method for width, method in zip(self.widths, methods, strict=True)},
            "quantized_layers": self.layer_names,
            "float_layers": [name for stage in self.stage_layers for name in stage.float_layers],
        }
