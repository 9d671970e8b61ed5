"""An early-exit network whose segments run at several bit-widths on one copy of the weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from eenet.backbones import StagedBackbone
from eenet.backbones.base import State
from eenet.costs import count_macs
from eenet.errors import UserError
from eenet.exits import find_exits
from eenet.gates import ConfidenceGate, ErrorGate, ErrorPredictor, Gate, Known, TreeStoppingGate
from eenet.inference_modules import InferenceModule, LinearHead
from eenet.network import EarlyExitNetwork, ExitFeatures, check_exits, count_costs
from eenet.policies import PredictedErrors
from eenet.profile import CostProfile, Costs, TreeCosts, bitops
from eenet.quantization.grid import check_widths
from eenet.quantization.layers import NATIVE_WIDTH, NativeLinear
from eenet.quantization.twins import Twins
from eenet.tree import FLOAT, Path, Tree, full_paths, path_name


class WidthHeads(InferenceModule):
    """The inference modules of one exit, one for each width of the segment before it, or one for all.

    Args:
        make: Makes an inference module from `(dim, num_classes)`.
        dim: Width of the features.
        num_classes: Number of classes.
        widths: From the widest to the narrowest.
        shared: One for all widths.
    """

    def __init__(
        self,
        make: Callable[[int, int], InferenceModule],
        dim: int,
        num_classes: int,
        widths: Sequence[int],
        shared: bool,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(make(dim, num_classes) for _ in (widths[:1] if shared else widths))
        self.number = {width: 0 if shared else number for number, width in enumerate(widths)}
        self.reads = self.heads[0].reads  # type: ignore[misc, assignment]

    def at(self, width: int) -> nn.Module:
        """The inference module for features of a width."""
        return self.heads[self.number[width]]

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the widest, `(batch, classes)`."""
        return self.heads[0](features)


class QuantizedNetwork(Twins, EarlyExitNetwork):
    """Segments between exits at several bit-widths, inference modules per width, an error predictor at each early node.

    What comes before the first stage, the heads and the predictors stay at 32 bits. `forward` gives the logits of all
    nodes of the tree, `(batch, nodes, classes)`; `route` runs only what a sample needs, by the predicted errors of a
    `policy`. `along` is the plain network on one path. Everything but `native` runs the simulated quantizer.

    Args:
        backbone: The staged backbone, in evaluation mode whenever it runs.
        exits: Stages, from 0, after which an exit reads; `all` for every stage but the last.
        inference_module: Makes an exit's head from `(dim, num_classes)`.
        widths: Bits of weights and activations that a segment can run at: 32 (float), 16, 8, 6, 4.
        max_paths: Number of full paths up to which all are kept; beyond, those whose width never rises. [inferred]
        shared_heads: One inference module per exit instead of one per exit and width. [inferred]

    Raises:
        UserError: Exits out of order or range, a width without a grid, a quantized backbone, or too many paths.

    Attributes:
        family: Which paths are kept.
        calibration_batches: Batches of training inputs that give the ranges of the activations.
    """

    calibration_batches = 4

    def __init__(
        self,
        backbone: StagedBackbone,
        exits: Any = "all",
        inference_module: Callable[[int, int], InferenceModule] = LinearHead,
        widths: Sequence[int] = (32, 8, 4),
        max_paths: int = 64,
        shared_heads: bool = False,
    ) -> None:
        ordered, stages = check_widths(widths), check_exits(find_exits(exits, backbone), backbone.num_stages)
        family, paths = full_paths(ordered, len(stages) + 1, max_paths)
        tree, dims = Tree.of(paths), [backbone.feature_dims[stage] for stage in stages]

        def make(dim: int, num_classes: int) -> InferenceModule:
            return WidthHeads(inference_module, dim, num_classes, ordered, shared_heads)

        super().__init__(backbone, stages, make, lambda num_gates: ErrorGate(tree, dims))
        self.prepare_twins(widths, "network.widths")
        self.family, self.tree = family, tree
        self._counted: dict[type[Gate], CostProfile] = {}  # by gate, of all paths

    def along(self, path: Path, gate: Gate | None = None) -> Self:
        """The plain network on one full path, whose samples leave or go on; it shares all weights.

        Args:
            path: Widths of the segments.
            gate: Of its early exits; their confidence by default.

        Raises:
            UserError: There is no such path, or it ends early.
        """
        if len(self.tree.along(path)) < self.num_exits:
            raise UserError("path", path_name(path), f"needs a width for each of the {self.num_exits} segments")
        other = self.with_gate(gate or ConfidenceGate(self.num_exits - 1))
        other.tree = Tree.of([path])
        return other

    @property
    def predictors(self) -> Sequence[nn.Module]:
        """The error predictors of the early nodes."""
        return list(self.gate.predictors) if isinstance(self.gate, ErrorGate) else []

    def policy(self, first_width: int, tradeoff: float) -> PredictedErrors:
        """QuEE's policy over the network's paths, their costs in BitOPs.

        Args:
            first_width: Of the first segment.
            tradeoff: lambda.

        Raises:
            UserError: The network does not run at that width.
        """
        costs = self.costs.fractions("bitops").tolist()
        return PredictedErrors(first_width, tradeoff, self.tree.nodes, costs)

    @cached_property
    def costs(self) -> Costs:
        """MACs, counted on the float model, and BitOPs."""
        if not isinstance(self.gate, ErrorGate | TreeStoppingGate):
            if type(self.gate) not in self._counted:
                self._counted[type(self.gate)] = count_costs(self)
            return replace(self._counted[type(self.gate)], stage_bitops=self._stage_bitops(self.tree.full[0]))
        profiles = {
            path: replace(self.parts, gates=self._gates_passed(path), stage_bitops=self._stage_bitops(path))
            for path in self.tree.full
        }
        return TreeCosts.of(self.tree, profiles)

    @cached_property
    def parts(self) -> CostProfile:
        """MACs of the parts of the plain network on the widest path."""
        found = self.along(self.tree.full[0]).costs
        assert isinstance(found, CostProfile)
        return found

    def _stage_bitops(self, path: Path) -> tuple[int, ...]:
        widths = [width for width, stages in zip(path, self.segments, strict=True) for _ in stages]
        return tuple(part.bitops(width) for part, width in zip(self.stage_layers, widths, strict=True))

    def _gates_passed(self, path: Path) -> tuple[int, ...]:
        if isinstance(self.gate, TreeStoppingGate):
            return (self.gate.weight[0].numel(),) * (self.num_exits - 1)
        return tuple(self._macs_of_predictors[node] for node in self.tree.along(path)[:-1])

    @cached_property
    def _macs_of_predictors(self) -> list[int]:
        device, found = self.ranges.device, []
        for predictor in self.predictors:
            assert isinstance(predictor, ErrorPredictor)
            weight = predictor.project.weight
            rows = torch.zeros(1, weight.shape[1], device=device, dtype=weight.dtype)
            found.append(count_macs(predictor, Known(rows.new_zeros(1, 4), rows))[0])
        return found

    def prepare(self, inputs: Callable[[str, int], Iterable[Any]]) -> list[Tensor]:
        """The ranges of the activations, and which are used at each width."""
        return self.take_ranges(inputs, self.calibration_batches)

    def run_segment(self, segment: int, width: int, state: State) -> State:
        """Run the stages of a segment at a width."""
        twin = self.twin(width)
        for stage in self.segments[segment]:
            state = twin.run_stage(stage, state)
        return state

    def logits_at(self, place: int, features: Tensor, before: Any) -> Tensor:
        """Logits of an early exit, `(batch, classes)`, from what it reads after a segment at some width."""
        exit, width = self.tree.places[place]
        head = self.inference_modules[exit]
        assert isinstance(head, WidthHeads)
        return head.at(width)(features)

    def extract(self, inputs: Any) -> ExitFeatures:
        """What the heads read at every node, each segment run once per beginning of a path.

        Returns:
            As features, what the early nodes' heads read and the logits of the full paths but the last; as final logits
            those of the last path.
        """
        states: dict[Path, State] = {(): self.backbone.embed(inputs)}
        features: list[Tensor] = []
        for node, path in enumerate(self.tree.nodes):
            segment = len(path) - 1
            state = self.run_segment(segment, path[-1], states[path[:-1]])
            if node < self.tree.num_early:
                states[path] = state
                features.append(self.read(segment, state))
            else:
                features.append(self.backbone.classify(state))
        return ExitFeatures(features[:-1], features[-1])

    def feature_facts(self) -> dict[str, Any]:
        """The paths too, and the ranges that their quantized segments use."""
        ranges = {width: self.width_ranges(width).tolist() for width in self.widths if width != FLOAT}
        return {**super().feature_facts(), "paths": self.tree.nodes, "ranges": ranges, "native": self.native}

    def exit_logits(self, extracted: ExitFeatures) -> Tensor:
        """Logits of all nodes, `(batch, nodes, classes)`."""
        early = extracted.features[: self.tree.num_early]
        logits = [
            self.logits_at(place, features, ()) for place, features in zip(self.tree.place_of, early, strict=False)
        ]
        full = [*extracted.features[self.tree.num_early :], extracted.final_logits]
        return torch.stack([*logits, *(rows.to(full[-1].dtype) for rows in full)], dim=1)

    def memory(self) -> dict[str, int]:
        """Bytes of the loaded weights: the one float copy, the int8 codes if `native`, and the ranges.

        A simulated layer holds none: it rounds the float weight at every call.
        """
        float_bytes = sum(weight.numel() * weight.element_size() for weight in self.backbone.parameters())
        native = self.native and NATIVE_WIDTH in self.widths
        layers = (
            [layer for layer in self.twin(NATIVE_WIDTH).modules() if isinstance(layer, NativeLinear)] if native else []
        )
        codes = sum(layer.codes.numel() for layer in layers)
        return {"float_weights": float_bytes, "int8_codes": codes, "ranges": self.ranges.numel() * 4}

    @property
    def quantization(self) -> dict[str, Any]:
        """Plain JSON values: widths, paths, ranges, layers left in float, the BitOPs table and the memory."""
        segments = [[self.stage_layers[stage] for stage in stages] for stages in self.segments]
        return {
            **self.describe_twins(),
            "path_family": self.family,
            "quantized_macs": [sum(part.macs for part in parts) for parts in segments],
            "float_macs": [sum(part.float_macs for part in parts) for parts in segments],
            "full_bitops": self.costs.columns["bitops"].full,
            "predictor_bitops": [bitops(macs) for macs in self._macs_of_predictors],
            "bitops": [row for width in self.widths for row in self._bitops_rows(width)],
            "memory_bytes": self.memory(),
        }

    def _bitops_rows(self, width: int) -> list[dict[str, int]]:
        """BitOPs of each segment at a width, and up to its end at that width throughout."""
        each = [sum(self.stage_layers[stage].bitops(width) for stage in stages) for stages in self.segments]
        totals = list(accumulate(each, initial=bitops(self.parts.embed)))[1:]
        return [
            {"segment": segment, "width": width, "bitops": own, "cumulative": total}
            for segment, (own, total) in enumerate(zip(each, totals, strict=True))
        ]
