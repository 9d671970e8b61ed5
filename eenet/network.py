"""An early-exit network: a staged backbone, inference modules at some stages, and gates."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from eenet.backbones.base import StagedBackbone, State
from eenet.backbones.proofs import guard
from eenet.connections import Apart, Boosted, Connection
from eenet.counting import count_costs
from eenet.described import Described
from eenet.errors import UserError
from eenet.exits import check_exits, find_exits, segment_stages
from eenet.gates import Gate, GateInput, Known, UncertaintyGate, known_at
from eenet.inference_modules import InferenceModule, LinearHead, run_inference_modules
from eenet.objectives.gradients import fork
from eenet.policies.base import Policy
from eenet.pretrained import Pretrained
from eenet.profile import CostProfile, Costs
from eenet.routing import Routed, route
from eenet.tree import Path, Tree, path_name


class ExitFeatures(NamedTuple):
    """What the exits of a frozen backbone need: features at each early exit, and the last exit's logits.

    Attributes:
        features: One tensor per early exit, `(batch, dim, ...)`.
        final_logits: `(batch, classes)`.
    """

    features: list[Tensor]
    final_logits: Tensor


class ExitOutputs(NamedTuple):
    """All nodes computed, for training and validation.

    Attributes:
        logits: `(batch, nodes, classes)`; the last node of a path is the backbone's own head.
        scores: Gate scores, `(batch, early nodes)`, or `(batch, early nodes, nodes)` of an `ErrorGate`.
    """

    logits: Tensor
    scores: Tensor


class EarlyExitNetwork(Described, Pretrained, nn.Module):
    """Exits after some stages of a backbone; the last exit is the backbone's own head.

    Args:
        backbone: The staged backbone.
        exits: Stages after which an exit reads: numbers from 0, names of modules where the backbone knows them,
            `{fractions: [0.25, 0.5]}` of the MACs, or `all` for every stage but the last.
        inference_module: Makes an exit's head from `(dim, num_classes)`.
        gate: Makes the gates from their number.
        boosted: Add the detached logits of the exit before to those of each early exit (Yu et al., AAAI 2023). The last
            exit stays the backbone's own head alone [inferred]; in the paper it is boosted too.
        connection: Makes what else exits take from those before them, from the number of early exits and of classes:
            `eenet.connections.ZeroTimeWaste` or `PastFuture`.
        gradient_rescaling: Scale what each exit sends back into a backbone that trains, so that all exits have an equal
            share (Li et al., ICCV 2019); see `eenet.objectives.fork`. Without effect on a frozen one.

    Raises:
        UserError: Exits out of order or range, a head that reads feature maps on a backbone that has none, a gate that
            reads what the network does not have, or is made for other classes, or two connections.

    Attributes:
        gate_inputs: What gates can read.
        tree: Its nodes: in a plain network a chain, whose nodes are the exits.
        segments: The stages of each segment, which ends at an exit.
    """

    gate_inputs: ClassVar[tuple[GateInput, ...]] = ("logits", "known")

    def __init__(
        self,
        backbone: StagedBackbone,
        exits: list[int] | list[str] | dict[str, list[float]] | Literal["all"] = "all",
        inference_module: Callable[[int, int], InferenceModule] = LinearHead,
        gate: Callable[[int], Gate] = UncertaintyGate,
        boosted: bool = False,
        gradient_rescaling: bool = False,
        connection: Callable[[int, int], Connection] = Apart,
    ) -> None:
        super().__init__()
        guard(backbone)
        self.backbone = backbone
        self.exit_stages = check_exits(find_exits(exits, backbone), backbone.num_stages)
        self.segments = segment_stages(self.exit_stages, backbone.num_stages)
        self.tree = Tree.chain(len(self.segments))
        self.connection = connection(len(self.exit_stages), backbone.num_classes)
        if boosted and self.connection.connects:
            raise UserError("network.boosted", True, f"and {type(self.connection).__name__} exclude each other")
        self.boosting = Boosted(len(self.exit_stages), backbone.num_classes) if boosted else None
        self.inference_modules = nn.ModuleList(
            _make_head(inference_module, backbone, stage, self.link.outputs) for stage in self.exit_stages
        )
        self.gate = gate(len(self.exit_stages))
        if self.gate.reads not in self.gate_inputs:
            kind = type(self.gate).__name__
            raise UserError("network.gate", kind, "is for decoders, eenet.decoding.network.DecoderNetwork")
        classes = getattr(self.gate, "num_classes", backbone.num_classes)
        if classes != backbone.num_classes:
            remedy = f"is made for {classes} classes; the backbone has {backbone.num_classes}"
            raise UserError("network.gate", type(self.gate).__name__, remedy)
        if self.gate.reads == "known" and self.link.connects:
            raise UserError("network.gate", type(self.gate).__name__, "is for exits without a connection")
        self.boosted, self.gradient_rescaling = boosted, gradient_rescaling
        self.points: dict[str, Any] = {}

    @property
    def link(self) -> Connection:
        """What exits take from those before them: the connection, or boosting."""
        return self.connection if self.boosting is None else self.boosting

    @property
    def num_exits(self) -> int:
        """Early exits and the last one."""
        return len(self.exit_stages) + 1

    @cached_property
    def costs(self) -> Costs:
        """What every node costs, counted once on one example input."""
        return count_costs(self)

    @property
    def parts(self) -> CostProfile:
        """MACs of its parts; where the tree branches, along the widest path."""
        assert isinstance(self.costs, CostProfile)
        return self.costs

    @property
    def quantization(self) -> dict[str, Any]:
        """How it is quantized, as plain JSON values; nothing where it is not."""
        return self.backbone.quantization

    @property
    def base_digest(self) -> str | None:
        """SHA-256 of a backbone that is saved as the name of its base model; `None` where its weights are saved."""
        return None

    def prepare(self, inputs: Callable[[str, int], Iterable[Any]]) -> list[Tensor]:
        """What a network needs of unlabelled inputs before it is trained, such as the ranges of its activations.

        Args:
            inputs: Gives so many batches of a split, `train` or `val`.

        Returns:
            The buffers that were set.
        """
        return self.backbone.prepare(inputs)

    def check(self, policy: Policy) -> None:
        """Raise a `UserError` for a policy of other exits or paths, or of a chain where the tree branches."""
        kind = type(policy).__name__
        if policy.tree is None and self.tree.branches:
            remedy = "leaves or goes on, and the network's paths branch by width; take `network.along(path)`"
            raise UserError("policy", kind, remedy)
        if policy.tree is not None and policy.tree != self.tree:
            known = ", ".join(path_name(path) for path in self.tree.full[:3])
            raise UserError("policy", kind, f"is made for other paths than the network's, {known}, ...")
        policy.check(self.num_exits)

    def read(self, exit: int, state: State) -> Tensor:
        """What the head of an early exit reads from the state after its stage."""
        stage = self.exit_stages[exit]
        if self.inference_modules[exit].reads == "map":
            return self.backbone.feature_map(stage, state)
        return self.backbone.features(stage, state)

    def extract(self, inputs: Any) -> Any:
        """Run the whole backbone and keep what the exits need, as `ExitFeatures`."""
        state = self.backbone.embed(inputs)
        features: list[Tensor] = []
        for stage in range(self.backbone.num_stages):
            state = self.backbone.run_stage(stage, state)
            if stage in self.exit_stages:
                branch = state
                if self.gradient_rescaling:
                    branch, state = fork(state, self.num_exits - len(features))
                features.append(self.read(len(features), branch))
        return ExitFeatures(features, self.backbone.classify(state))

    def embed(self, width: int, inputs: Any) -> State:
        """What comes before the first segment, which runs at a width where there are several."""
        return self.backbone.embed(inputs)

    def classify(self, width: int, state: State) -> Tensor:
        """The backbone's own head after a last segment, `(batch, classes)`."""
        return self.backbone.classify(state)

    def run_segment(self, segment: int, width: int, state: State) -> State:
        """Run the stages of a segment, at a width where there are several."""
        for stage in self.segments[segment]:
            state = self.backbone.run_stage(stage, state)
        return state

    def feature_facts(self) -> dict[str, Any]:
        """What `extract` depends on beside the backbone's architecture and state, as plain JSON values."""
        return {"exits": self.exit_stages, "reads": [head.reads for head in self.heads]}

    def logits_at(self, place: int, features: Tensor, before: Any) -> tuple[Tensor, Any]:
        """Logits of one early exit, `(batch, classes)`, and what the later ones need of it.

        Args:
            place: The exit's number; where the tree branches, of its place.
            features: What `read` gave there.
            before: What the exit before returned for the later ones, where there is one.
        """
        return self.link.at(place, self.inference_modules[place](features), before)

    def gate_input(self, logits: Tensor, features: Tensor, before: Any = ()) -> Any:
        """What the gate reads at an exit: its logits `(batch, classes)`, or what is `Known` there.

        Args:
            logits: The exit's.
            features: What `read` gave there.
            before: What `remember` gave at the exit before.
        """
        return logits if self.gate.reads == "logits" else known_at(logits, features, before)

    def remember(self, before: Any, passed: Any, read: Any) -> Any:
        """What later exits need of this one: that of their heads, or what a gate that reads more has known.

        Args:
            before: What was remembered before.
            passed: From `logits_at`.
            read: From `gate_input`.
        """
        return (*before, read.row) if self.gate.reads == "known" else passed

    def exit_logits(self, extracted: Any) -> Tensor:
        """Logits of all exits, `(batch, exits, classes)`, from features that were extracted before; no gate runs."""
        return self.connected(extracted)[0]

    def connected(self, extracted: Any) -> tuple[Tensor, Tensor]:
        """The same, and what the connection adds to the exits' loss in training, a scalar."""
        final = extracted.final_logits.unsqueeze(1)
        if not extracted.features:
            return final, final.new_zeros(())
        own = self.own_logits(extracted)
        early = self.link(own)
        extra = self.link.loss(own) if torch.is_grad_enabled() else own.new_zeros(())
        return torch.cat([early, final.to(early.dtype)], dim=1), extra

    def early_logits(self, extracted: Any) -> Tensor:
        """Logits of the early exits, `(batch, exits - 1, classes)`: all that trains where the last exit does not."""
        return self.link(self.own_logits(extracted))

    def own_logits(self, extracted: Any) -> Tensor:
        """What the inference modules say before the exits are connected, `(batch, exits - 1, outputs)`."""
        return run_inference_modules(self.heads, extracted.features)

    def known(self, extracted: Any, logits: Tensor) -> list[Known]:
        """What is known at every early node.

        Args:
            extracted: From `extract`.
            logits: From `exit_logits`.
        """
        found: list[Known] = []
        for node, features in enumerate(extracted.features[: self.tree.num_early]):
            way = self.tree.along(self.tree.nodes[node])[:-1]
            found.append(known_at(logits[:, node], features, tuple(found[passed].row for passed in way)))
        return found

    def from_features(self, extracted: Any) -> ExitOutputs:
        """Heads and gates on features that were extracted before."""
        logits = self.exit_logits(extracted)
        if not extracted.features:
            return ExitOutputs(logits, logits.new_empty(len(logits), 0))
        read = logits[:, : self.tree.num_early] if self.gate.reads == "logits" else self.known(extracted, logits)
        return ExitOutputs(logits, self.gate(read))

    def forward(self, inputs: Any) -> ExitOutputs:
        """Logits and gate scores of all nodes, nothing skipped."""
        return self.from_features(self.extract(inputs))

    def route(self, inputs: Any, policy: Policy) -> Routed:
        """Run only what each sample needs; see `eenet.routing.route`.

        Raises:
            UserError: The policy is for another tree.
        """
        self.check(policy)
        return route(self, inputs, policy)

    def along(self, path: Path, gate: Gate | None = None) -> Self:
        """The plain network on one path of a tree that branches.

        Args:
            path: Widths of the segments.
            gate: Of its early exits; its own by default.

        Raises:
            UserError: There is no such path.
        """
        self.tree.along(path)
        return self if gate is None else self.with_gate(gate)

    def keeping(self, exits: Sequence[int], gate: Gate | None = None) -> Self:
        """The network with only some of its early exits, which are numbered from 0 again; it shares their weights.

        Args:
            exits: Their numbers here, rising.
            gate: Of those exits; what its own says of them by default.

        Raises:
            UserError: Its exits are connected or its paths branch, or its gate reads other exits than the present one.
        """
        if self.link.connects or self.tree.branches:
            raise UserError("place", True, "needs exits that read nothing of each other, along one path")
        own = self.gate.keeping(exits) if gate is None else gate
        other = self.with_gate(own)
        other._modules["inference_modules"] = nn.ModuleList(self.heads[exit] for exit in exits)
        other.exit_stages = [self.exit_stages[exit] for exit in exits]
        other.segments = segment_stages(other.exit_stages, self.backbone.num_stages)
        other.tree = Tree.chain(len(other.segments))
        return other

    def with_gate(self, gate: Gate) -> Self:
        """The same network, sharing backbone and inference modules, behind another gate."""
        other = copy.copy(self)
        other._modules = {**self._modules, "gate": gate}
        other.__dict__.pop("costs", None)
        return other

    @property
    def heads(self) -> Sequence[InferenceModule]:
        """The inference modules of the early exits."""
        return list(self.inference_modules)  # type: ignore[arg-type]


def _make_head(
    inference_module: Callable[[int, int], InferenceModule], backbone: StagedBackbone, stage: int, outputs: int
) -> InferenceModule:
    head = inference_module(backbone.feature_dims[stage], outputs)
    if head.reads == "vector":
        return head
    if backbone.map_dims is None:
        raise UserError(
            "network.inference_module",
            type(head).__name__,
            f"reads feature maps and {type(backbone).__name__} has none; choose a head on pooled features",
        )
    return inference_module(backbone.map_dims[stage], outputs)
