"""One ONNX file that routes: the steps of a chain of exits, each but the first behind an `If` that asks who stays.

The form, chosen by the clock of ONNX Runtime:

* for any batch the `If`s follow one another and none is nested, since a nested one pays for every outer value it reads;
* weights and constants of a step are initializers of its own branch: a convolution's weight that lies outside is not
  laid out for the processor;
* every exit writes the logits of all rows that are still there, the number of the exit beside them, and later exits
  overwrite them (`ScatterND`); then those that stay are picked (`Compress`), within the branch that needs them;
* where nobody stays, empty states are handed on (`ConstantOfShape`, for which no runtime forgets the rank);
* whoever does not show that it leaves stays: a NaN goes to the last exit and is marked there.

For a batch of one nothing is picked or written in its place, and the `If`s are nested: each reads a state and returns
logits and the exit. Every kind of operator that is not there counts: behind a stage none of them is in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from eenet.errors import UserError
from eenet.exporting.onnx_program import OPSET
from eenet.runtime.manifest import InputSpec
from eenet.runtime.onnx_program import place_of
from eenet.runtime.routed_onnx import COST, EXIT, INPUT, LOGITS, NAN_EXIT

IR_VERSION = 10
FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9
"""Numbers of ONNX's types."""

TYPES = {"float32": FLOAT, "int64": INT64}


class SetRule(NamedTuple):
    """What makes conformal sets of logits.

    Attributes:
        temperatures: `(exits,)`.
        quantiles: `(exits,)`, or of each class `(1, classes)`.
    """

    temperatures: Sequence[float]
    quantiles: np.ndarray


def compose(
    steps: Sequence[Any],
    inputs: Sequence[InputSpec],
    macs: Sequence[int],
    sets: Mapping[str, SetRule] | None = None,
    one: bool = False,
    sized: bool = True,
) -> Any:
    """The file as a protobuf message.

    Args:
        steps: ONNX models of the steps, with the inputs `input_0`, ...; they return what they hand on, logits and, but
            for the last one, who leaves.
        inputs: The tensors of a batch.
        macs: Of a sample that leaves at each exit.
        sets: Conformal sets by name, outputs beside `logits`, `exit` and `cost`.
        one: For batches of exactly one sample.
        sized: Let the inputs of such a file say so. Not where layers are int8: ONNX Runtime would join products of a
            known size with their biases first, and run them in floating point.

    Raises:
        UserError: Logits are not in single precision.
    """
    graphs = [step.graph for step in steps]
    if any(_kind(graph.output[_logits(graphs, number)]).dtype != FLOAT for number, graph in enumerate(graphs)):
        raise UserError("format", "onnx", "writes networks in single precision; use onnx-steps")
    top, chain = Builder("top_"), _Chain(graphs, _needed(graphs))
    names = {place: spec.name or INPUT for place, spec in enumerate(inputs)}
    logits, exit = chain.nested(top, 0, names) if one else chain.in_turn(top, names)
    outputs = _answer(top, logits, exit, chain.classes, macs, sets or {})
    batch = 1 if one and sized else "batch"
    given = []
    for place, spec in enumerate(inputs):
        sizes = (size or f"length_{place}_{axis}" for axis, size in enumerate(spec.shape))
        given.append(_helper().make_tensor_value_info(names[place], TYPES[spec.dtype], [batch, *sizes]))
    graph = _helper().make_graph(top.nodes, "routed", given, outputs, top.initializers)
    opsets = [_helper().make_opsetid("", OPSET)]
    return _helper().make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="eenet")


class Kind(NamedTuple):
    """Type of a value, and its length along each axis behind the first, `None` where that may vary."""

    dtype: int
    sizes: tuple[int | None, ...]


@dataclass
class Builder:
    """A graph in the making.

    Attributes:
        prefix: Of the names of its values.
        nodes: Its nodes in order.
        initializers: Its constants and weights.
    """

    prefix: str
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output, and say the output's name."""
        return self.ops(operator, 1, *inputs, **attributes)[0]

    def ops(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node of several outputs, and say their names."""
        names = [f"{self.prefix}{operator}_{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(_helper().make_node(operator, list(inputs), names, **attributes))
        return names

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Add a constant, and say its name."""
        name = f"{self.prefix}constant_{len(self.initializers)}"
        self.initializers.append(import_module("onnx").numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def empty(self, kind: Kind) -> str:
        """Add a tensor without rows."""
        zero = _helper().make_tensor("zero", kind.dtype, [1], [0])
        return self.op("ConstantOfShape", self.constant([0, *(size or 0 for size in kind.sizes)]), value=zero)

    def branch(
        self, condition: str, then: tuple[Builder, list[str]], other: tuple[Builder, list[str]], kinds: Sequence[Kind]
    ) -> list[str]:
        """Add an `If` whose branches return values of these kinds."""
        graphs = {}
        for label, (inner, names) in (("then_branch", then), ("else_branch", other)):
            infos = [
                _helper().make_tensor_value_info(name, kind.dtype, [f"{name}_0", *_axes(name, kind)])
                for name, kind in zip(names, kinds, strict=True)
            ]
            graphs[label] = _helper().make_graph(inner.nodes, f"{inner.prefix}graph", [], infos, inner.initializers)
        return self.ops("If", len(kinds), condition, **graphs)


class _Step(NamedTuple):
    """Names of what a step returns: by place what the next one reads, logits, and `leave`, empty at the end."""

    handed_on: dict[int, str]
    logits: str
    leave: str


@dataclass(frozen=True)
class _Chain:
    """The steps' graphs, and for each the places of those of its outputs that the next one reads."""

    graphs: Sequence[Any]
    needed: Sequence[Sequence[int]]

    @property
    def classes(self) -> int:
        """Width of the logits."""
        (width,) = _kind(self.graphs[-1].output[-1]).sizes
        assert width is not None
        return width

    def in_turn(self, top: Builder, given: dict[int, str]) -> tuple[str, str]:
        """All steps for any batch; the names of the logits, and of the exits, `(batch,)`."""
        step = self.inline(top, 0, given)
        result, rows = self.numbered(top, 0, step.logits), ""
        for number in range(1, len(self.graphs)):
            stay = top.op("Not", step.leave)
            # Summed as whole numbers: a maximum of floats loses a NaN, and one of an empty batch fails.
            count = top.op("ReduceSum", top.op("Cast", stay, to=INT32), keepdims=0)
            inner, other, last = Builder(f"then_{number}_"), Builder(f"else_{number}_"), number == len(self.graphs) - 1
            rows = inner.op("Compress", rows, stay, axis=0) if rows else _places(inner, stay)
            given = {place: inner.op("Compress", name, stay, axis=0) for place, name in step.handed_on.items()}
            step = self.inline(inner, number, given)
            written = inner.op("ScatterND", result, rows, self.numbered(inner, number, step.logits))
            kinds, returned = [Kind(FLOAT, (self.classes + 1,))], [written]
            passed = [other.op("Identity", result)]
            if not last:
                handed_on = {place: _kind(self.graphs[number].output[place]) for place in step.handed_on}
                kinds += (found := [Kind(INT64, (1,)), Kind(BOOL, ()), *handed_on.values()])
                returned += [rows, step.leave, *step.handed_on.values()]
                passed += [other.empty(kind) for kind in found]
            result, *more = top.branch(top.op("Cast", count, to=BOOL), (inner, returned), (other, passed), kinds)
            if not last:
                rows, leave, *states = more
                step = _Step(dict(zip(step.handed_on, states, strict=True)), "", leave)
        logits, column = top.ops("Split", 2, result, top.constant([self.classes, 1]), axis=1)
        return logits, top.op("Cast", top.op("Reshape", column, top.constant([-1])), to=INT64)

    def nested(self, graph: Builder, number: int, given: dict[int, str]) -> tuple[str, str]:
        """The steps from a number on for a batch of one; the names of its logits, and of its exit, `(1,)`."""
        step = self.inline(graph, number, given)
        if number == len(self.graphs) - 1:
            return step.logits, self.ended(graph, number, step.logits, INT64)
        then, other = Builder(f"then_{number}_"), Builder(f"else_{number}_")
        left = [then.op("Identity", name) for name in (step.logits, then.constant([number]))]
        stayed = list(self.nested(other, number + 1, step.handed_on))
        kinds = [Kind(FLOAT, (self.classes,)), Kind(INT64, ())]
        logits, exit = graph.branch(step.leave, (then, left), (other, stayed), kinds)
        return logits, exit

    def inline(self, graph: Builder, number: int, given: Mapping[int, str]) -> _Step:
        """Put what is needed of a step into a graph.

        Args:
            graph: Where it goes.
            number: Of the step.
            given: Names of its inputs by place.
        """
        step, last = self.graphs[number], number == len(self.graphs) - 1
        prefix = f"step_{number}_"
        names = {info.name: given[place_of(info.name)] for info in step.input if place_of(info.name) in given}

        def renamed(name: str) -> str:
            return name and names.get(name, f"{prefix}{name}")

        wanted = [step.output[place].name for place in self.needed[number]]
        logits = step.output[_logits(self.graphs, number)].name
        leave = [] if last else [step.output[-1].name]
        kept, read = nodes_behind(step, [*wanted, logits, *leave])
        for node in kept:
            copy = deepcopy(node)
            for remark in ("name", "doc_string", "metadata_props"):  # the last has paths of this machine
                copy.ClearField(remark)
            copy.input[:], copy.output[:] = map(renamed, node.input), map(renamed, node.output)
            graph.nodes.append(copy)
        for weight in step.initializer:
            if weight.name in read:
                copy = deepcopy(weight)
                copy.name = renamed(weight.name)
                graph.initializers.append(copy)
        handed_on = {place: renamed(name) for place, name in zip(self.needed[number], wanted, strict=True)}
        return _Step(handed_on, renamed(logits), "" if last else renamed(leave[0]))

    def numbered(self, graph: Builder, number: int, logits: str) -> str:
        """Logits with the exit's number beside them, `(batch, classes + 1)`."""
        if number < len(self.graphs) - 1:
            return graph.op("Pad", logits, graph.constant([0, 0, 0, 1]), graph.constant(number, np.float32))
        return graph.op("Concat", logits, self.ended(graph, number, logits, FLOAT), axis=1)

    def ended(self, graph: Builder, number: int, logits: str, kind: int) -> str:
        """The last exit's number, or the mark of a NaN: floats, `(batch, 1)`, or whole numbers, `(batch,)`."""
        # A sum would call infinities of both signs no number.
        unknown = graph.op("Cast", graph.op("IsNaN", logits), to=kind)
        missing = graph.op("ReduceMax", unknown, graph.constant([1]), keepdims=int(kind == FLOAT))
        dtype = np.float32 if kind == FLOAT else np.int64
        marks = [graph.constant(value, dtype) for value in (NAN_EXIT - number, number)]
        return graph.op("Add", graph.op("Mul", missing, marks[0]), marks[1])


def cut(step: Any, places: Sequence[int] | None) -> Any:
    """A step that returns only some of its outputs, and computes nothing else; all of them for `None`."""
    if places is None:
        return step
    outputs = [step.graph.output[place] for place in places]
    nodes, read = nodes_behind(step.graph, [info.name for info in outputs])
    inputs = [info for info in step.graph.input if info.name in read]
    weights = [weight for weight in step.graph.initializer if weight.name in read]
    graph = _helper().make_graph(nodes, "part", inputs, outputs, weights)
    return _helper().make_model(graph, opset_imports=step.opset_import, ir_version=IR_VERSION)


def never(steps: Sequence[Any]) -> list[Any]:
    """The same steps, whose gates are computed and let nobody leave."""
    found = []
    for step in steps[:-1]:
        copy = deepcopy(step)
        name = copy.graph.output[-1].name
        off = import_module("onnx").numpy_helper.from_array(np.array(False), f"{name}_off")
        copy.graph.initializer.append(off)
        copy.graph.node.append(_helper().make_node("And", [name, off.name], [f"{name}_never"]))
        copy.graph.output[-1].name = f"{name}_never"
        found.append(copy)
    return [*found, steps[-1]]


def _answer(
    top: Builder, logits: str, exit: str, classes: int, macs: Sequence[int], sets: Mapping[str, SetRule]
) -> list[Any]:
    """Add what is returned, and say what it is."""
    found = {LOGITS: (logits, FLOAT, classes), EXIT: (exit, INT64, None)}
    found[COST] = top.op("Gather", top.constant(macs), exit), INT64, None
    for name, rule in sets.items():
        temperatures = top.op("Gather", top.constant([[value] for value in rule.temperatures], np.float32), exit)
        probabilities = top.op("Softmax", top.op("Div", logits, temperatures), axis=-1)
        quantiles = top.constant(rule.quantiles if rule.quantiles.ndim == 2 else rule.quantiles[:, None], np.float32)
        limits = quantiles if rule.quantiles.ndim == 2 else top.op("Gather", quantiles, exit)
        scores = top.op("Sub", top.constant(1, np.float32), probabilities)
        found[name] = top.op("LessOrEqual", scores, limits), BOOL, classes
    outputs = []
    for name, (value, dtype, width) in found.items():
        for node in top.nodes:
            node.input[:] = [name if given == value else given for given in node.input]
            node.output[:] = [name if given == value else given for given in node.output]
        sizes = ["batch", *([width] if width else [])]
        outputs.append(_helper().make_tensor_value_info(name, dtype, sizes))
    return outputs


def _needed(graphs: Sequence[Any]) -> list[list[int]]:
    """For each step the places of the outputs that the next one reads, in order."""
    needed: list[list[int]] = [[] for _ in graphs]
    for number in range(len(graphs) - 1, 0, -1):
        graph, last = graphs[number], number == len(graphs) - 1
        ends = [_logits(graphs, number), *([] if last else [len(graph.output) - 1]), *needed[number]]
        _, read = nodes_behind(graph, [graph.output[place].name for place in ends])
        needed[number - 1] = sorted(place_of(info.name) for info in graph.input if info.name in read)
    return needed


def nodes_behind(graph: Any, outputs: Sequence[str], given: Set[str] = frozenset()) -> tuple[list[Any], set[str]]:
    """The nodes that make some outputs of what is given, in order, and the names that are read."""
    read, kept = set(outputs), []
    for node in reversed(graph.node):
        if (read - given) & set(node.output):
            kept.append(node)
            read |= set(node.input)
    return kept[::-1], read


def _logits(graphs: Sequence[Any], number: int) -> int:
    """Place of the logits among the outputs of a step."""
    return len(graphs[number].output) - (1 if number == len(graphs) - 1 else 2)


def _places(graph: Builder, stay: str) -> str:
    """Places of those that stay, `(staying, 1)`."""
    return graph.op("Transpose", graph.op("NonZero", stay), perm=[1, 0])


def _kind(info: Any) -> Kind:
    kind = info.type.tensor_type
    sizes = (axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim)
    return Kind(kind.elem_type, tuple(sizes)[1:])


def _axes(name: str, kind: Kind) -> list[int | str]:
    return [f"{name}_{axis}" if size is None else size for axis, size in enumerate(kind.sizes, 1)]


def _helper() -> Any:
    return import_module("onnx.helper")
