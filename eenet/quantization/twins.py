"""A float backbone at several bit-widths: weights on the grids of each, and the ranges that activations need."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from typing_extensions import Self

from eenet.backbones import StagedBackbone
from eenet.backbones.base import State
from eenet.errors import UserError
from eenet.profile import bitops
from eenet.quantization.grid import activation_grid, activation_width, check_edge, check_widths
from eenet.quantization.layers import NATIVE_WIDTH, Rounding, SimulatedLayer, Weights, channels, native_layer
from eenet.quantization.products import Split, check_rest, quantized_products
from eenet.quantization.ranges import METHODS, Observed, observe, output_means
from eenet.quantization.rounding import as_matrix, gptq_codes, mse_scales
from eenet.quantization.segments import StageLayers, count_parts, evaluation, replace_layers
from eenet.tree import FLOAT


class Twin(StagedBackbone):
    """A backbone with other layers in its stages, whose other products run at a width of their own.

    Args:
        backbone: The float backbone with its layers replaced, from `replace_layers`.
        rest_width: Bits of attention's products and of what is before and behind the stages.
        attends: Whether each stage has attention to quantize.
    """

    def __init__(self, backbone: StagedBackbone, rest_width: int, attends: Sequence[bool]) -> None:
        super().__init__()
        self.backbone, self.rest_width, self.attends = backbone, rest_width, attends
        self.num_stages, self.num_classes = backbone.num_stages, backbone.num_classes
        self.feature_dims, self.map_dims = backbone.feature_dims, backbone.map_dims

    def embed(self, inputs: Any) -> State:
        """As the float backbone, at the width of what is in no stage."""
        with quantized_products(self.rest_width):
            return self.backbone.embed(inputs)

    def run_stage(self, i: int, state: State) -> State:
        """Run stage `i`, counted from 0, with other layers."""
        with quantized_products(self.rest_width if self.attends[i] else FLOAT, layers=False):
            return self.backbone.run_stage(i, state)

    def features(self, i: int, state: State) -> Tensor:
        """As the float backbone."""
        return self.backbone.features(i, state)

    def classify(self, state: State) -> Tensor:
        """As the float backbone, at the width of what is in no stage."""
        with quantized_products(self.rest_width):
            return self.backbone.classify(state)

    def example_input(self) -> Any:
        """As the float backbone."""
        return self.backbone.example_input()

    def description(self) -> dict[str, Any]:
        """As the float backbone."""
        return self.backbone.description()


class Twins(nn.Module):
    """What quantizes a `backbone`, for modules that have one: twins at some widths, all kept in the checkpoint.

    Attributes:
        backbone: The float backbone.
        widths: Bits of the weights, from the widest to the narrowest; activations have no fewer than 4.
        rest_width: Bits of attention's products, and of the linear layers and convolutions that are in no stage.
        wider: The least width of some layers by name.
        native: Run 8 bits and fewer by int8 products.
        embed_macs: What is before the first stage.
        stage_layers: The layers of each stage.
        classifier_macs: The backbone's own head.
        layer_names: Of the layers that are quantized, in the order of their ranges.
    """

    backbone: StagedBackbone
    widths: tuple[int, ...]
    rest_width: int
    wider: dict[str, int]
    native: bool
    embed_macs: Split
    stage_layers: list[StageLayers]
    classifier_macs: Split
    layer_names: list[str]
    _shapes: list[torch.Size]
    ranges: Tensor
    range_methods: Tensor

    def prepare_twins(
        self, widths: Sequence[int], field: str, rest_width: int = 8, edge_width: int | None = None
    ) -> None:
        """Find the layers of the backbone, which is in place, and make room for their codes and ranges.

        Args:
            widths: Bits, from any of `eenet.quantization.WIDTHS`.
            field: Of the configuration, that holds them.
            rest_width: Bits of attention's products, the embedding and heads: 8, 4 or 32.
            edge_width: Least bits of the first and the last layer of the stages.

        Raises:
            UserError: A width without a grid, or a backbone that is quantized already.
        """
        self.widths = check_widths(widths, field)
        self.rest_width = check_rest(rest_width, field.rpartition(".")[0] + ".rest_width")
        if isinstance(self.backbone, Twins):
            raise UserError(
                "network.backbone", type(self.backbone).__name__, "is quantized already; give the float one"
            )
        self.native = False
        self.embed_macs, self.stage_layers, self.classifier_macs = count_parts(self.backbone)
        self.layer_names = list(dict.fromkeys(name for stage in self.stage_layers for name in stage.layers))
        if not self.layer_names:
            problem = "runs no linear layer or convolution as a module in its stages, so that none can be quantized"
            raise UserError("network.backbone", type(self.backbone).__name__, problem)
        self.wider = {}
        if edge_width is not None:
            least = check_edge(edge_width, field.rpartition(".")[0] + ".edge_width")
            self.wider = {self.layer_names[end]: least for end in (0, -1)}
        self._shapes = [self.backbone.get_parameter(f"{name}.weight").shape for name in self.layer_names]
        total, outputs = sum(shape.numel() for shape in self._shapes), sum(shape[0] for shape in self._shapes)
        for width in self.quantized_widths:
            kind = torch.int8 if max(width, edge_width or 0) <= 8 else torch.int16
            self.register_buffer(f"codes_{width}", torch.zeros(total, dtype=kind))
            self.register_buffer(f"scales_{width}", torch.zeros(outputs))
            self.register_buffer(f"shifts_{width}", torch.zeros(outputs))
        self.register_buffer("ranges", torch.zeros(len(self.widths), len(self.layer_names), 2))
        self.register_buffer("range_methods", torch.full((len(self.widths),), -1))
        self._twins: dict[tuple[int, bool], Twin] = {}
        self.register_load_state_dict_post_hook(lambda module, keys: module._twins.clear())

    @property
    def quantized_widths(self) -> tuple[int, ...]:
        """The widths with a grid."""
        return tuple(width for width in self.widths if width != FLOAT)

    def layer_width(self, name: str, width: int) -> int:
        """Bits of a layer's weight where its segment runs at a width."""
        return max(width, self.wider.get(name, 0))

    def stage_bitops_at(self, width: int) -> tuple[int, ...]:
        """BitOPs of each stage at a width."""
        return tuple(part.bitops(width, self.rest_width, self.wider) for part in self.stage_layers)

    def outer_bitops_at(self, width: int) -> tuple[int, int]:
        """BitOPs of what is before the stages and of the backbone's own head, where the stages run at a width."""
        rest = self.rest_width if width != FLOAT else FLOAT
        return self.embed_macs.bitops(rest), self.classifier_macs.bitops(rest)

    def part_rows(self, heads: Mapping[str, Split]) -> list[dict[str, Any]]:
        """Of the whole network at each width: each kind of part with its MACs, its bits and its BitOPs.

        Args:
            heads: Other parts that have the width of the rest, by name.
        """
        outer = {"embedding": self.embed_macs, "classifier": self.classifier_macs, **heads}
        layers, attention, floats = (
            sum(getattr(part, name) for part in self.stage_layers) for name in ("macs", "attention_macs", "float_macs")
        )
        edges = sum(
            macs
            for part in self.stage_layers
            for name, macs in zip(part.layers, part.layer_macs, strict=True)
            if name in self.wider
        )
        others = floats + sum(split.rest for split in outer.values())
        found = []
        for width in self.widths:
            rest = self.rest_width if width != FLOAT else FLOAT
            rows = [("layers of the stages", layers - edges, width, activation_width(width))]
            if self.wider:
                least = self.layer_width(self.layer_names[0], width)
                rows.append(("first and last layer", edges, least, activation_width(least)))
            narrow = [("attention's products", attention), *((name, split.quantized) for name, split in outer.items())]
            rows += [(name, macs, rest, rest) for name, macs in narrow]
            rows += [("all else", others, FLOAT, FLOAT)]
            keys = ("part", "macs", "weight_bits", "activation_bits")
            found += [{"width": width, **dict(zip(keys, row, strict=True)), "bitops": bitops(*row[1:])} for row in rows]
        return found

    def take_ranges(self, inputs: Callable[[str, int], Iterable[Any]], batches: int) -> list[Tensor]:
        """Calibrate on training batches, and choose ranges on as many of validation; the buffers that were set."""
        self.calibrate(inputs("train", batches), inputs("val", batches))
        weights = [getattr(self, f"{kind}_{width}") for width in self.quantized_widths for kind in KINDS]
        return [self.ranges, self.range_methods, *weights]

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Any], checks: Iterable[Any] | None = None) -> None:
        """Put the weights on their grids and take the ranges of the activations, from unlabelled inputs.

        Weights have the range of least squared error, each input weighed by its second moment, and are rounded by GPTQ.
        Each output channel is shifted so that its mean is the float layer's, where the layers before it are quantized:
        with one width all of them, with several those of its stage, which then makes up for its own errors alone and
        may stand behind stages of other widths. For each width the kind of ranges is kept whose network is nearest to
        the float one: in the mean Kullback-Leibler divergence of the float network's probabilities. [inferred]

        Args:
            batches: Inputs.
            checks: Inputs on which the ranges are chosen; the same by default.

        Raises:
            UserError: There is no batch, all samples are the same, or a value is no number.
        """
        for name in self.layer_names:
            if not self.backbone.get_parameter(f"{name}.weight").isfinite().all():
                raise UserError("network.backbone", name, "has weights that are no finite numbers")
        batches = filled(batches)
        observed = observe(self.backbone, self.layer_names, batches)
        checks = batches if checks is None else filled(checks)
        if not checks:
            raise UserError("checks", 0, "ranges are chosen on at least one batch; without checks on the others")
        methods = range(len(METHODS) if any(seen.by_rows for seen in observed) else 1)
        with evaluation(self.backbone):
            wanted = [self.backbone(batch).log_softmax(-1) for batch in checks]
            if not all(rows.isfinite().all() for rows in wanted):
                raise UserError("checks", "nan", "give logits that are no finite numbers; look at the data")
            for number, width in enumerate(self.widths):
                self.range_methods[number] = 0
                if width != FLOAT:
                    self._round(width, observed)
                    tried = [self._try(number, method, observed, batches, checks, wanted) for method in methods]
                    _, method, shifts = min(tried, key=lambda found: found[0])
                    self.range_methods[number] = method
                    getattr(self, f"shifts_{width}").copy_(shifts)
        self._twins.clear()

    def _round(self, width: int, observed: Sequence[Observed]) -> None:
        for name, seen, weights in zip(self.layer_names, observed, self._weights(width), strict=True):
            layer, bits = self.backbone.get_submodule(name), self.layer_width(name, width)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            matrix = as_matrix(layer.weight, getattr(layer, "groups", 1)).double()
            scales = mse_scales(matrix, bits, seen.moments.diagonal(dim1=1, dim2=2).unsqueeze(1).double())
            scales = scales.to(weights.scales).to(scales)  # rounded with the scales that are kept
            weights.codes.copy_(gptq_codes(matrix, seen.moments, scales, bits).view_as(weights.codes))
            weights.scales.copy_(scales.flatten())
        number = self.widths.index(width)
        ranges = [
            seen.range(self.layer_width(name, width)) for name, seen in zip(self.layer_names, observed, strict=True)
        ]
        self.ranges[number] = torch.tensor(ranges)

    def _try(
        self,
        number: int,
        method: int,
        observed: Sequence[Observed],
        batches: Sequence[Any],
        checks: Sequence[Any],
        wanted: Sequence[Tensor],
    ) -> tuple[float, int, Tensor]:
        """The distance from the float network with some method, and the shifts of the channels that go with it."""
        width = self.widths[number]
        self.range_methods[number] = method
        shifts = getattr(self, f"shifts_{width}").zero_()
        twin = self._make_twin(width, False)
        layers = [twin.backbone.get_submodule(name) for name in self.layer_names]
        hook = shifting(dict(zip(layers, (seen.outputs for seen in observed), strict=True)))
        hooks = [layer.register_forward_hook(hook) for layer in layers]
        for batch in batches:
            self._pass(twin, batch)
        for handle in hooks:
            handle.remove()
        pairs = zip((twin(batch).log_softmax(-1) for batch in checks), wanted, strict=True)
        distance = sum(F.kl_div(*pair, reduction="sum", log_target=True).item() for pair in pairs)
        return distance, method, shifts.clone()

    def _pass(self, twin: Twin, batch: Any) -> None:
        """Run a twin on a batch: whole where it is the only width, else each stage on the float network's state."""
        if len(self.widths) == 1:
            twin(batch)
            return
        state = self.backbone.embed(batch)
        for stage in range(self.backbone.num_stages):
            twin.run_stage(stage, state)
            state = self.backbone.run_stage(stage, state)

    def _weights(self, width: int) -> list[Weights]:
        """Of each layer: views of the flat buffers."""
        codes, scales, shifts = (getattr(self, f"{kind}_{width}") for kind in KINDS)
        outputs = [shape[0] for shape in self._shapes]
        parts = codes.split([shape.numel() for shape in self._shapes]), scales.split(outputs), shifts.split(outputs)
        return [Weights(own.view(shape), *rest) for shape, own, *rest in zip(self._shapes, *parts, strict=True)]

    def twin(self, width: int) -> StagedBackbone:
        """The backbone with its stages at a width; a `UserError` where it is not calibrated."""
        if width == FLOAT:
            return self.backbone
        key = width, self.native
        if key not in self._twins:
            if self.range_methods[self.widths.index(width)] < 0:
                remedy = (
                    "has no ranges and no codes yet; `eenet fit` takes them from training inputs, `calibrate` from any"
                )
                raise UserError("network.widths", width, remedy)
            self._twins[key] = self._make_twin(*key)
        return self._twins[key]

    def _make_twin(self, width: int, native: bool) -> Twin:
        layers: dict[str, nn.Module] = {}
        number = self.widths.index(width)
        by_rows = METHODS[int(self.range_methods[number])] == "token"
        found = zip(self.layer_names, self.ranges[number].tolist(), self._weights(width), strict=True)
        for name, (lowest, highest), weights in found:
            layer, bits = self.backbone.get_submodule(name), activation_width(self.layer_width(name, width))
            rounding: Rounding = activation_grid(lowest, highest, bits)
            if by_rows and isinstance(layer, nn.Linear):
                rounding = bits
            narrow = self.layer_width(name, width) <= NATIVE_WIDTH
            integer = native_layer(layer, weights, rounding) if native and narrow else None
            layers[name] = integer or SimulatedLayer(layer, weights, rounding)
        attends = [part.attention_macs > 0 for part in self.stage_layers]
        return Twin(replace_layers(self.backbone, layers), self.rest_width, attends).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Scales, shifts and ranges stay at least at float32; codes are views of buffers that may be new."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.is_floating_point() and after.itemsize < 4:
                self._buffers[name] = buffer.to(after.device)
        self._twins.clear()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        missing = [width for width in self.quantized_widths if f"{prefix}codes_{width}" not in state_dict]
        if missing and f"{prefix}ranges" in state_dict:
            problem = f"has no weights at {missing[0]} bits: it is of other widths, or of an older version, whose "
            raise UserError("ckpt_path", None, problem + "quantizer kept none; run `eenet fit` again")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def describe_twins(self) -> dict[str, Any]:
        """Plain JSON values: the widths of all parts, how ranges were chosen, the layers quantized and those not."""
        methods = [METHODS[method] if method >= 0 else None for method in self.range_methods.tolist()]
        return {
            "widths": list(self.widths),
            "activation_widths": [activation_width(width) for width in self.widths],
            "rest_width": self.rest_width,
            "wider_layers": self.wider,
            "rounding": "gptq",
            "range_methods": {str(width): method for width, method in zip(self.widths, methods, strict=True)},
            "quantized_layers": self.layer_names,
            "float_layers": [name for stage in self.stage_layers for name in stage.float_layers],
        }


def filled(batches: Iterable[Any]) -> list[Any]:
    """The batches with a sample."""
    return [batch for batch in batches if len(pytree.tree_leaves(batch)[0])]


KINDS = ("codes", "scales", "shifts")
"""What is kept of the weights at each width."""


def shifting(wanted: Mapping[nn.Module, Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook of simulated layers that shifts their output channels so that the mean over all calls is what is wanted.

    Args:
        wanted: Mean of each output channel, by layer.
    """
    totals: dict[nn.Module, tuple[Tensor, int]] = {}

    def hook(layer: nn.Module, given: Any, output: Tensor) -> Tensor:
        assert isinstance(layer, SimulatedLayer)
        shifts, plain = layer.weights.shifts, layer.layer
        total, count = totals.get(layer, (torch.zeros_like(shifts), 0))
        totals[layer] = total, count = total + output_means(output, plain) - shifts, count + 1
        before = shifts.clone()
        shifts.copy_(wanted[layer] - total / count)
        return output + channels((shifts - before).to(output.dtype), plain)

    return hook
