"""An early-exit network whose segments run at several bit-widths on one copy of the weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import Self

from eenet.backbones import StagedBackbone
from eenet.backbones.base import State
from eenet.costs import count_macs
from eenet.counting import count_costs
from eenet.errors import UserError
from eenet.exits import check_exits, find_exits
from eenet.files import tensor_digest
from eenet.gates import ConfidenceGate, ErrorGate, Gate, Known, TreeStoppingGate
from eenet.inference_modules import InferenceModule, LinearHead
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.policies import PredictedErrors
from eenet.profile import CostProfile, Costs, TreeCosts, bitops
from eenet.quantization.grid import check_widths
from eenet.quantization.products import Split, quantized_products, split_macs
from eenet.quantization.segments import evaluation
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


class NarrowErrorGate(ErrorGate):
    """Error predictors whose products run at a width of their own, but for those behind segments at 32 bits.

    Args:
        tree: The tree.
        dims: Width of the features at each early exit.
        classes: Number of classes.
        rest_width: Bits.
    """

    def __init__(self, tree: Tree, dims: Sequence[int], classes: int, rest_width: int) -> None:
        super().__init__(tree, dims, classes)
        self.rest_width = rest_width

    def errors(self, node: int, known: Known) -> Tensor:
        """As every error gate."""
        with quantized_products(FLOAT if self.tree.nodes[node][-1] == FLOAT else self.rest_width):
            return super().errors(node, known)


class QuantizedNetwork(Twins, EarlyExitNetwork):
    """Segments between exits at several bit-widths, inference modules per width, an error predictor at each early node.

    Where a segment runs at 32 bits all is in floating point. Elsewhere attention's products, what comes before the
    first stage, heads and predictors run at `rest_width`, in evaluation mode. `forward` gives the logits of all nodes
    of the tree, `(batch, nodes, classes)`; `route` runs only what a sample needs, by the predicted errors of a
    `policy`. `along` is the plain network on one path. Everything but `native` runs the simulated quantizer.

    Args:
        backbone: The staged backbone, in evaluation mode whenever it runs.
        exits: Stages, from 0, after which an exit reads; `all` for every stage but the last.
        inference_module: Makes an exit's head from `(dim, num_classes)`.
        widths: Bits that a segment's weights can have: 32 (float), 16, 8, 6, 4, 3, 2; activations have at least 4.
        max_paths: Number of full paths up to which all are kept; beyond, those whose width never rises. [inferred]
        shared_heads: One inference module per exit instead of one per exit and width. [inferred]
        rest_width: Bits of attention's products, the embedding, heads and predictors: 8, 4 or 32. [inferred]
        edge_width: Least bits of the first and the last layer of the stages, such as 8; the same as all by default.

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
        rest_width: int = 8,
        edge_width: int | None = None,
    ) -> None:
        ordered, stages = check_widths(widths), check_exits(find_exits(exits, backbone), backbone.num_stages)
        family, paths = full_paths(ordered, len(stages) + 1, max_paths)
        tree, dims = Tree.of(paths), [backbone.feature_dims[stage] for stage in stages]

        def make(dim: int, num_classes: int) -> InferenceModule:
            return WidthHeads(inference_module, dim, num_classes, ordered, shared_heads)

        super().__init__(
            backbone, stages, make, lambda num_gates: NarrowErrorGate(tree, dims, backbone.num_classes, rest_width)
        )
        self.prepare_twins(widths, "network.widths", rest_width, edge_width)
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
            return self._at_widths(self._counted[type(self.gate)], self.tree.full[0])
        profiles = {
            path: self._at_widths(replace(self.parts, gates=self._gates_passed(path)), path) for path in self.tree.full
        }
        return TreeCosts.of(self.tree, profiles)

    def _at_widths(self, profile: CostProfile, path: Path) -> CostProfile:
        """What a chain along a path costs: heads and predictors have the width that goes with their segment's."""
        widths = [width for width, stages in zip(path, self.segments, strict=True) for _ in stages]
        stages = [self.stage_bitops_at(width)[stage] for stage, width in enumerate(widths)]
        heads = [split.bitops(self.outer_width(width)) for split, width in zip(self._head_macs, path, strict=False)]
        gates = list(map(bitops, profile.gates))
        if isinstance(self.gate, ErrorGate):
            rests = [self.outer_width(width) for width in path[:-1]]
            gates = [bitops(macs, rest, rest) for macs, rest in zip(profile.gates, rests, strict=True)]
        embed, classifier = self.outer_bitops_at(path[0])[0], self.outer_bitops_at(path[-1])[1]
        return replace(
            profile,
            stage_bitops=tuple(stages),
            outer_bitops=(embed, classifier),
            head_bitops=tuple(heads),
            gate_bitops=tuple(gates),
        )

    def outer_width(self, width: int) -> int:
        """Bits of heads, predictors and what is around the stages beside a segment at a width."""
        return self.rest_width if width != FLOAT else FLOAT

    @cached_property
    def _head_macs(self) -> list[Split]:
        """Of each early exit's head; what it reads being made of the state stays at 32 bits."""
        found = []
        with torch.no_grad(), evaluation(self):
            weight = next(self.parameters())
            state = self.backbone.embed(
                pytree.tree_map(
                    lambda rows: rows.to(weight if rows.is_floating_point() else weight.device),
                    self.backbone.example_input(),
                )
            )
            for exit, stages in enumerate(self.segments[:-1]):
                for stage in stages:
                    state = self.backbone.run_stage(stage, state)
                reading, features = count_macs(self.read, exit, state)
                head = split_macs(self.inference_modules[exit], features)
                found.append(Split(head.macs + reading, head.quantized, None))
        return found

    @cached_property
    def parts(self) -> CostProfile:
        """MACs of the parts of the plain network on the widest path."""
        found = self.along(self.tree.full[0]).costs
        assert isinstance(found, CostProfile)
        return found

    def _gates_passed(self, path: Path) -> tuple[int, ...]:
        if isinstance(self.gate, TreeStoppingGate):
            return (self.gate.weight[0].numel(),) * (self.num_exits - 1)
        return tuple(self._macs_of_predictors[node] for node in self.tree.along(path)[:-1])

    @property
    def _bitops_of_predictors(self) -> list[int]:
        widths = [self.outer_width(self.tree.nodes[node][-1]) for node in range(self.tree.num_early)]
        return [bitops(macs, rest, rest) for macs, rest in zip(self._macs_of_predictors, widths, strict=False)]

    @cached_property
    def _macs_of_predictors(self) -> list[int]:
        found, weight = [], next(self.parameters())
        dims = [self.backbone.feature_dims[stage] for stage in self.exit_stages]
        for node, predictor in enumerate(self.predictors):
            known: list[Known] = []
            for dim in dims[: self.tree.exit(node) + 1]:
                statistics, features, log_p = (weight.new_zeros(1, n) for n in (4, dim, self.backbone.num_classes))
                known.append(Known(statistics, features, log_p, tuple(before.row for before in known)))
            found.append(count_macs(predictor, known[-1])[0])
        return found

    def prepare(self, inputs: Callable[[str, int], Iterable[Any]]) -> list[Tensor]:
        """Codes and ranges at each width."""
        return self.take_ranges(inputs, self.calibration_batches)

    def embed(self, width: int, inputs: Any) -> State:
        """What comes before a first segment at a width."""
        return self.twin(width).embed(inputs)

    def classify(self, width: int, state: State) -> Tensor:
        """The backbone's own head after a last segment at a width, `(batch, classes)`."""
        return self.twin(width).classify(state)

    def run_segment(self, segment: int, width: int, state: State) -> State:
        """Run the stages of a segment at a width."""
        twin = self.twin(width)
        for stage in self.segments[segment]:
            state = twin.run_stage(stage, state)
        return state

    def logits_at(self, place: int, features: Tensor, before: Any) -> tuple[Tensor, Any]:
        """Logits of an early exit, `(batch, classes)`, from what it reads after a segment at some width."""
        exit, width = self.tree.places[place]
        head = self.inference_modules[exit]
        assert isinstance(head, WidthHeads)
        with quantized_products(FLOAT if self.training else self.outer_width(width)):
            return head.at(width)(features), ()

    def extract(self, inputs: Any) -> ExitFeatures:
        """What the heads read at every node, each segment run once per beginning of a path.

        Returns:
            As features, what the early nodes' heads read and the logits of the full paths but the last; as final logits
            those of the last path.
        """
        first = [path for path in self.tree.nodes if len(path) == 1]
        embedded = {self.outer_width(width): self.embed(width, inputs) for (width,) in first}
        states: dict[Path, State] = {}
        features: list[Tensor] = []
        for node, path in enumerate(self.tree.nodes):
            segment = len(path) - 1
            before = states[path[:-1]] if segment else embedded[self.outer_width(path[0])]
            state = self.run_segment(segment, path[-1], before)
            if node < self.tree.num_early:
                states[path] = state
                features.append(self.read(segment, state))
            else:
                features.append(self.classify(path[-1], state))
        return ExitFeatures(features[:-1], features[-1])

    def feature_facts(self) -> dict[str, Any]:
        """The paths too, and the codes and ranges that their quantized segments use."""
        kept = tensor_digest((name, buffer) for name, buffer in self.named_buffers(recurse=False))
        return {
            **super().feature_facts(),
            "paths": self.tree.nodes,
            "quantized": kept,
            "rest_width": self.rest_width,
            "native": self.native,
        }

    def exit_logits(self, extracted: ExitFeatures) -> Tensor:
        """Logits of all nodes, `(batch, nodes, classes)`."""
        early = extracted.features[: self.tree.num_early]
        logits = [
            self.logits_at(place, features, ())[0] for place, features in zip(self.tree.place_of, early, strict=False)
        ]
        full = [*extracted.features[self.tree.num_early :], extracted.final_logits]
        return torch.stack([*logits, *(rows.to(full[-1].dtype) for rows in full)], dim=1)

    def memory(self) -> dict[str, int]:
        """Bytes of the one float copy of the weights, of the codes at all widths, and of scales, shifts and ranges."""
        kept = {name: buffer.numel() * buffer.itemsize for name, buffer in self.named_buffers(recurse=False)}
        codes = sum(size for name, size in kept.items() if name.startswith("codes_"))
        floats = sum(weight.numel() * weight.element_size() for weight in self.backbone.parameters())
        return {"float_weights": floats, "codes": codes, "scales_and_ranges": sum(kept.values()) - codes}

    @property
    def quantization(self) -> dict[str, Any]:
        """Plain JSON values: the width of every part, paths, layers left in float, the BitOPs table and the memory."""
        segments = [[self.stage_layers[stage] for stage in stages] for stages in self.segments]
        return {
            **self.describe_twins(),
            "path_family": self.family,
            "quantized_macs": [sum(part.macs for part in parts) for parts in segments],
            "attention_macs": [sum(part.attention_macs for part in parts) for parts in segments],
            "float_macs": [sum(part.float_macs for part in parts) for parts in segments],
            "full_bitops": self.costs.columns["bitops"].full,
            "predictor_bitops": self._bitops_of_predictors,
            "parts": self.part_rows({f"head {exit}": split for exit, split in enumerate(self._head_macs)}),
            "bitops": [row for width in self.widths for row in self._bitops_rows(width)],
            "memory_bytes": self.memory(),
        }

    def _bitops_rows(self, width: int) -> list[dict[str, int]]:
        """BitOPs of each segment at a width, and up to its end at that width throughout."""
        stage_bitops = self.stage_bitops_at(width)
        each = [sum(stage_bitops[stage] for stage in stages) for stages in self.segments]
        totals = list(accumulate(each, initial=self.outer_bitops_at(width)[0]))[1:]
        return [
            {"segment": segment, "width": width, "bitops": own, "cumulative": total}
            for segment, (own, total) in enumerate(zip(each, totals, strict=True))
        ]
