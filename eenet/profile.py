"""What leaving at each node of a network costs, in multiply-accumulate operations (MACs) and in BitOPs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.tree import FLOAT, Path, Tree


def bitops(macs: int, weight_bits: int = FLOAT, activation_bits: int = FLOAT) -> int:
    """BitOPs: MACs times the bits of both factors (QuEE, arXiv 2406.14404).

    Example:
        >>> bitops(10, 4, 8), bitops(1)
        (320, 1024)
    """
    return macs * weight_bits * activation_bits


class Column(NamedTuple):
    """What leaving at each node costs in one unit, MACs, BitOPs or seconds; the nodes of a plain network are its exits.

    Attributes:
        routed: Of a sample that leaves there: stages, inference modules and gates passed, its own included.
        static: Of a network cut there: the stages and that exit's inference module alone.
        full: Of the plain backbone in floating point, without any inference module or gate.
    """

    routed: tuple[int, ...]
    static: tuple[int, ...]
    full: int

    def fractions(self) -> Tensor:
        """What is routed, divided by the full network's, float64 `(nodes,)`."""
        return torch.tensor(self.routed, dtype=torch.float64) / self.full


class Costs(ABC):
    """What a network's nodes cost, a column for each unit.

    Attributes:
        uncounted: What has no count in some part; all figures of that part are too low by it.
    """

    uncounted: tuple[str, ...]

    @property
    @abstractmethod
    def num_exits(self) -> int:
        """Early exits and the last one."""

    @property
    @abstractmethod
    def node_exits(self) -> Sequence[int]:
        """The exit of each node."""

    @property
    @abstractmethod
    def stages_run(self) -> Sequence[int]:
        """Stages that a sample leaving at each node has run."""

    @property
    @abstractmethod
    def columns(self) -> dict[str, Column]:
        """By unit: `macs`, and `bitops` where some part is quantized."""

    @property
    def full(self) -> int:
        """MACs of the plain backbone, without any inference module or gate: what a user had before."""
        return self.columns["macs"].full

    def fractions(self, unit: str = "macs") -> Tensor:
        """Cost of leaving at each node divided by the plain backbone's, `(nodes,)`; the last is a little above 1."""
        return self.columns[unit].fractions()

    def normalised(self) -> Tensor:
        """The costs `c_l` of the objectives, `(nodes,)`: MACs of each node divided by the last one's, so `c_L = 1`."""
        routed = torch.tensor(self.columns["macs"].routed, dtype=torch.float64)
        return routed / routed[-1]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""


@dataclass(frozen=True)
class CostProfile(Costs):
    """MACs per sample of the parts of an early-exit network with `exits` exits, the last being the backbone's head.

    Attributes:
        embed: What comes before the first stage.
        stages: Each stage.
        classifier: The backbone's own head.
        heads: Each inference module and what it reads being made of the state, one per exit but the last.
        gates: Each gate, one per exit but the last.
        exit_stages: The stage after which each early exit reads.
        uncounted: What has no count in some part; all figures of that part are too low by it.
        boosted: Each early exit needs the heads of those before it, as boosted and other connected ones do.
        stage_bitops: BitOPs of each stage where stages are quantized.
        outer_bitops: Those of `embed` and `classifier`; at 32 bits by default, as are the next two.
        head_bitops: Those of each of `heads`.
        gate_bitops: Those of each of `gates`.
    """

    embed: int
    stages: tuple[int, ...]
    classifier: int
    heads: tuple[int, ...] = ()
    gates: tuple[int, ...] = ()
    exit_stages: tuple[int, ...] = ()
    uncounted: tuple[str, ...] = ()
    boosted: bool = False
    stage_bitops: tuple[int, ...] | None = None
    outer_bitops: tuple[int, int] | None = None
    head_bitops: tuple[int, ...] | None = None
    gate_bitops: tuple[int, ...] | None = None

    @property
    def num_exits(self) -> int:
        """Early exits and the last one."""
        return len(self.exit_stages) + 1

    @property
    def full(self) -> int:
        """As the costs of any network."""
        return self.embed + sum(self.stages) + self.classifier

    @property
    def stages_run(self) -> list[int]:
        """Stages that a sample leaving at each exit has run."""
        return [*(stage + 1 for stage in self.exit_stages), len(self.stages)]

    @property
    def node_exits(self) -> Sequence[int]:
        """The exits."""
        return range(self.num_exits)

    @property
    def columns(self) -> dict[str, Column]:
        """MACs, and BitOPs where stages are quantized."""
        found = {"macs": Column(tuple(self.cumulative), tuple(self.static), self.full)}
        if self.stage_bitops is not None:
            embed, classifier = self.outer_bitops or (bitops(self.embed), bitops(self.classifier))
            own = CostProfile(
                embed,
                self.stage_bitops,
                classifier,
                self.head_bitops or tuple(map(bitops, self.heads)),
                self.gate_bitops or tuple(map(bitops, self.gates)),
                self.exit_stages,
                boosted=self.boosted,
            )
            found["bitops"] = Column(tuple(own.cumulative), tuple(own.static), bitops(self.full))
        return found

    @property
    def cumulative(self) -> list[int]:
        """MACs of a sample that leaves at each exit: stages, inference modules and gates passed, its own included."""
        overhead, totals = 0, []
        for stage, head, gate in zip(self.exit_stages, self.heads, self.gates, strict=True):
            overhead += head + gate
            totals.append(self.embed + sum(self.stages[: stage + 1]) + overhead)
        return [*totals, self.full + overhead]

    @property
    def static(self) -> list[int]:
        """MACs of a static network cut at each exit: the stages and that exit's head (connected: and those before)."""
        heads = accumulate(self.heads) if self.boosted else self.heads
        early = [
            self.embed + sum(self.stages[: stage + 1]) + head
            for stage, head in zip(self.exit_stages, heads, strict=True)
        ]
        return [*early, self.full]

    def keeping(self, exits: Sequence[int]) -> "CostProfile":
        """Of the network with only some of its early exits, whose heads read nothing of others.

        Example:
            >>> CostProfile(1, (4, 4, 4), 2, (1, 1), (0, 0), (0, 1)).keeping([1]).cumulative
            [10, 16]
        """
        parts = {
            name: None if (values := getattr(self, name)) is None else _some(values, exits)
            for name in ("heads", "gates", "exit_stages", "head_bitops", "gate_bitops")
        }
        return replace(self, **parts)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CostProfile":
        """The profile that `to_dict` described."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class TreeCosts(Costs):
    """What the nodes of a tree that branches cost.

    Attributes:
        tree: The tree.
        stages: That a sample leaving at each node has run.
        macs: The costs in MACs.
        bitops: Those in BitOPs.
        uncounted: What has no count in some part.
    """

    tree: Tree
    stages: tuple[int, ...]
    macs: Column
    bitops: Column
    uncounted: tuple[str, ...] = ()

    @classmethod
    def of(cls, tree: Tree, profiles: Mapping[Path, CostProfile]) -> "TreeCosts":
        """The costs of a tree from those of a chain along each of its full paths."""
        ends = []
        for path in tree.nodes:
            through = next(full for full in tree.full if full[: len(path)] == path)
            ends.append((profiles[through], len(path) - 1))

        def column(unit: str) -> Column:
            found = [(profile.columns[unit], exit) for profile, exit in ends]
            return Column(
                tuple(column.routed[exit] for column, exit in found),
                tuple(column.static[exit] for column, exit in found),
                found[0][0].full,
            )

        stages = tuple(profile.stages_run[exit] for profile, exit in ends)
        return cls(tree, stages, column("macs"), column("bitops"), ends[0][0].uncounted)

    @property
    def num_exits(self) -> int:
        """Length of the full paths."""
        return self.tree.segments

    @property
    def node_exits(self) -> Sequence[int]:
        """The exit at the end of each node's path."""
        return [len(path) - 1 for path in self.tree.nodes]

    @property
    def stages_run(self) -> Sequence[int]:
        """The same as `stages`."""
        return self.stages

    @property
    def columns(self) -> dict[str, Column]:
        """MACs and BitOPs."""
        return {"macs": self.macs, "bitops": self.bitops}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the paths, and each column's by its name."""
        columns = {unit: column._asdict() for unit, column in self.columns.items()}
        return {"nodes": self.tree.nodes, "stages": self.stages, **columns, "uncounted": self.uncounted}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TreeCosts":
        """The costs that `to_dict` described."""
        macs, bitops = (
            Column(tuple(values[unit]["routed"]), tuple(values[unit]["static"]), values[unit]["full"])
            for unit in ("macs", "bitops")
        )
        tree = Tree(tuple(map(tuple, values["nodes"])))
        return cls(tree, tuple(values["stages"]), macs, bitops, tuple(values["uncounted"]))


@dataclass(frozen=True)
class Seconds:
    """What the parts of a chain of exits take by the clock, in seconds for a whole batch, measured on one device.

    Attributes:
        device: Where it was measured.
        runtime: `torch` or `onnx`.
        threads: Of the processor.
        batch_size: Samples of the batch.
        segments: The stages up to each exit; the first with what comes before, the last with the backbone's own head.
        heads: What each early exit reads and its inference module.
        gates: Each gate and its decision.
        hand_overs: What follows when somebody stays: picking the rows and handing them on.
        full: The plain backbone as a whole.
    """

    device: str
    runtime: str
    threads: int
    batch_size: int
    segments: tuple[float, ...]
    heads: tuple[float, ...]
    gates: tuple[float, ...]
    hand_overs: tuple[float, ...]
    full: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What has to agree for a profile to be used."""
        return self.device, self.runtime, self.threads, self.batch_size

    @property
    def per_sample(self) -> tuple[float, ...]:
        """Seconds of a sample that leaves at each exit, a share of its batch.

        Exact for a batch of one; in a larger one rows share the fixed cost of a step, and late steps have fewer rows.

        Example:
            >>> Seconds("cpu", "torch", 1, 2, (4.0, 6.0), (1.0,), (0.5,), (0.5,), 9.0).per_sample
            (2.75, 6.0)
        """
        passed, found = 0.0, []
        for segment, *exit in zip(self.segments, self.heads, self.gates, self.hand_overs, strict=False):
            passed += segment
            found.append(passed + exit[0] + exit[1])
            passed += sum(exit)
        return tuple(value / self.batch_size for value in (*found, passed + self.segments[-1]))

    def keeping(self, exits: Sequence[int]) -> "Seconds":
        """Of the network with only some of its early exits: no other head, gate or hand-over runs.

        Example:
            >>> found = Seconds("cpu", "torch", 1, 1, (4.0, 6.0, 5.0), (1.0, 2.0), (0.5, 0.5), (0.0, 0.0), 9.0)
            >>> found.keeping([1]).segments
            (10.0, 5.0)
        """
        starts = [0, *(exit + 1 for exit in exits), len(self.segments)]
        segments = tuple(sum(self.segments[start:stop]) for start, stop in pairwise(starts))
        heads, gates, hand_overs = (_some(part, exits) for part in (self.heads, self.gates, self.hand_overs))
        return replace(self, segments=segments, heads=heads, gates=gates, hand_overs=hand_overs)

    def fractions(self) -> Tensor:
        """`per_sample` divided by the plain backbone's, float64 `(exits,)`."""
        return torch.tensor(self.per_sample, dtype=torch.float64) * self.batch_size / self.full

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Seconds":
        """What `to_dict` described.

        Raises:
            ValueError: A time is not above 0, or parts do not fit together.
        """
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        found = cls(**plain)
        early = len(found.segments) - 1
        lengths = {len(part) for part in (found.heads, found.gates, found.hand_overs)}
        if lengths != {early} or not all(value > 0 for value in (*found.segments, found.full)):
            raise ValueError("parts of a profile by the clock")
        return found


def _some(values: Sequence[Any], places: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[place] for place in places)


def mean_cost(exit_fractions: Sequence[float] | Tensor, per_exit: Sequence[float] | Tensor) -> float:
    """Mean of a per-exit cost over samples of which the given fractions leave at each exit."""
    fractions = torch.as_tensor(exit_fractions, dtype=torch.float64)
    costs = torch.as_tensor(per_exit, dtype=torch.float64)
    if fractions.shape != costs.shape:
        raise UserError("exit_fractions", tuple(fractions.shape), f"there are {len(costs)} exits")
    return float(fractions @ costs)
