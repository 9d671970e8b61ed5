"""An early-exit network whose segments run at several bit-widths on one copy of the weights."""

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from eenet.backbones import StagedBackbone
from eenet.backbones.base import State
from eenet.costs import count_macs
from eenet.gates import ConfidenceGate, uncertainty_statistics
from eenet.inference_modules import InferenceModule, LinearHead
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.quantization.bitops import PathCosts, bitops
from eenet.quantization.grid import FLOAT, check_widths
from eenet.quantization.layers import NATIVE_WIDTH, NativeLinear
from eenet.quantization.paths import Path, PathTree, full_paths
from eenet.quantization.predictors import ErrorPredictor, Known
from eenet.quantization.segments import StageLayers
from eenet.quantization.twins import Twins


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
    nodes of the path tree, `(batch, nodes, classes)`; `eenet.quantization.route_paths` runs only what a sample needs.
    Everything but `native` runs the simulated quantizer.

    Args:
        backbone: The staged backbone, in evaluation mode whenever it runs.
        exits: Stages, from 0, after which an exit reads; `all` for every stage but the last.
        inference_module: Makes an exit's head from `(dim, num_classes)`.
        widths: Bits of weights and activations that a segment can run at: 32 (float), 16, 8, 6, 4.
        max_paths: Number of full paths up to which all are kept; beyond, those whose width never rises. [inferred]
        shared_heads: One inference module per exit instead of one per exit and width. [inferred]

    Raises:
        UserError: Exits out of order or range, a width without a grid, a quantized backbone, or too many paths.
    """

    def __init__(
        self,
        backbone: StagedBackbone,
        exits: Any = "all",
        inference_module: Callable[[int, int], InferenceModule] = LinearHead,
        widths: Sequence[int] = (32, 8, 4),
        max_paths: int = 64,
        shared_heads: bool = False,
    ) -> None:
        self_widths = check_widths(widths)

        def make(dim: int, num_classes: int) -> InferenceModule:
            return WidthHeads(inference_module, dim, num_classes, self_widths, shared_heads)

        super().__init__(backbone, exits, make, ConfidenceGate)
        self.prepare_twins(widths, "network.widths")
        self.segments = segment_stages(self.exit_stages, backbone.num_stages)
        self.family, paths = full_paths(self.widths, len(self.segments), max_paths)
        self.tree = PathTree.of(paths)
        self.predictors = nn.ModuleList(
            ErrorPredictor(backbone.feature_dims[self.last_stage(node)], len(self.tree.reachable(node)))
            for node in range(self.tree.num_early)
        )

    def last_stage(self, node: int) -> int:
        """The stage after which a node's exit reads."""
        return self.segments[self.tree.exit(node)][-1]

    @cached_property
    def segment_layers(self) -> list[StageLayers]:
        """Layers and MACs of each segment."""
        return [reduce(add, (self.stage_layers[stage] for stage in stages)) for stages in self.segments]

    @cached_property
    def path_costs(self) -> PathCosts:
        """MACs of every part, counted on the float model."""
        quantized = tuple(layers.macs for layers in self.segment_layers)
        floating = tuple(layers.float_macs for layers in self.segment_layers)
        return PathCosts(self.costs.embed, quantized, floating, (*self.costs.heads, self.costs.classifier))

    @cached_property
    def node_macs(self) -> list[int]:
        """MACs of a sample that leaves at each node, predictors and heads passed included."""
        return [
            self.costs.cumulative[self.tree.exit(node)] + self._predictor_macs(path)
            for node, path in enumerate(self.tree.nodes)
        ]

    @cached_property
    def node_bitops(self) -> list[int]:
        """BitOPs of a sample that leaves at each node, predictors and heads passed included."""
        return [self.path_costs.routed(path, self._predictor_macs(path)) for path in self.tree.nodes]

    @cached_property
    def node_costs(self) -> Tensor:
        """The same as a fraction of the plain backbone's BitOPs in floating point, `(nodes,)`."""
        return torch.tensor(self.node_bitops, dtype=torch.float64) / self.path_costs.full

    def _predictor_macs(self, path: Path) -> int:
        nodes = [self.tree.index[path[:length]] for length in range(1, len(path) + 1)]
        return sum(self._macs_of_predictors[node] for node in nodes if node < self.tree.num_early)

    @cached_property
    def _macs_of_predictors(self) -> list[int]:
        device = self.ranges.device
        found = []
        for predictor in self.predictors:
            features = torch.zeros(1, predictor.project.in_features, device=device)  # type: ignore[union-attr, arg-type]
            found.append(count_macs(predictor, Known(torch.zeros(1, 4, device=device), features))[0])
        return found

    def run_segment(self, segment: int, width: int, state: State) -> State:
        """Run the stages of a segment at a width."""
        twin = self.twin(width)
        for stage in self.segments[segment]:
            state = twin.run_stage(stage, state)
        return state

    def exit_logits_at(self, exit: int, width: int, features: Tensor) -> Tensor:
        """Logits of an early exit, `(batch, classes)`, from what it reads after a segment at some width."""
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
        early, logits = extracted.features[: self.tree.num_early], []
        for path, features in zip(self.tree.nodes, early, strict=False):
            logits.append(self.exit_logits_at(len(path) - 1, path[-1], features))
        full = [*extracted.features[self.tree.num_early :], extracted.final_logits]
        return torch.stack([*logits, *(rows.to(full[-1].dtype) for rows in full)], dim=1)

    def known(self, extracted: ExitFeatures, logits: Tensor) -> list[Known]:
        """What the predictors of the early nodes read.

        Args:
            extracted: From `extract`.
            logits: From `exit_logits`.
        """
        early = extracted.features[: self.tree.num_early]
        return [Known(uncertainty_statistics(logits[:, node]), pooled(features)) for node, features in enumerate(early)]

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

    def describe_quantization(self) -> dict[str, Any]:
        """Plain JSON values: widths, paths, ranges, layers left in float, the BitOPs table and the memory."""
        costs = self.path_costs
        return {
            **self.describe_twins(),
            "path_family": self.family,
            "quantized_macs": list(costs.quantized),
            "float_macs": list(costs.floating),
            "full_bitops": costs.full,
            "predictor_bitops": [bitops(macs) for macs in self._macs_of_predictors],
            "bitops": costs.table(self.widths),
            "memory_bytes": self.memory(),
        }


def segment_stages(exit_stages: Sequence[int], num_stages: int) -> list[list[int]]:
    """The stages of each segment, which ends at an exit.

    Example:
        >>> segment_stages([1], 4)
        [[0, 1], [2, 3]]
    """
    ends = [*exit_stages, num_stages - 1]
    starts = [0, *(stage + 1 for stage in exit_stages)]
    return [list(range(start, end + 1)) for start, end in zip(starts, ends, strict=True)]


def pooled(features: Tensor) -> Tensor:
    """Features as a vector, `(batch, dim)`; a map is averaged over its positions."""
    return features.flatten(2).mean(-1) if features.ndim > 2 else features
