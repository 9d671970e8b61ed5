"""The steps of a network as one plain graph with every head, and that graph cut into steps again."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from eenet.exporting.onnx_program import OPSET
from eenet.exporting.routed_onnx import BOOL, FLOAT, IR_VERSION, nodes_behind
from eenet.runtime.onnx_program import place_of

UINT8 = 2
"""Number of ONNX's type."""

POISON = "poison"
"""Zero for each sample, or no number where the sample has one that is none: codes cannot hold it."""


@dataclass(frozen=True)
class Merged:
    """All steps as one graph.

    Attributes:
        model: It returns every exit's logits and, but for the last, who leaves.
        ends: For each step the names of what it hands on, its logits and, but for the last, who leaves.
        logits: Names of the logits.
        scopes: What the nodes were in the network, by their names.
    """

    model: Any
    ends: list[list[str]]
    logits: list[str]
    scopes: dict[str, str]


def merge(steps: Sequence[Any]) -> Merged:
    """All steps as one plain graph, one after another, on all samples, whoever leaves.

    Logits of samples whose inputs are not finite are made no numbers, which codes would hide; what tells it is handed
    on behind the states where inputs are floating.
    """
    helper, last = import_module("onnx.helper"), len(steps) - 1
    given = list(steps[0].graph.input)
    nodes, initializers = _poison([info.name for info in given if info.type.tensor_type.elem_type == FLOAT])
    poison = bool(nodes)
    ends: list[list[str]] = []
    logits: list[str] = []
    scopes: dict[str, str] = {}
    for number, step in enumerate(steps):
        graph, prefix = step.graph, f"step_{number}_"
        names = {info.name: ends[-1][place_of(info.name)] if number else info.name for info in graph.input}
        answer = graph.output[-1 if number == last else -2].name
        logits.append(f"{prefix}{answer}")

        def renamed(name: str, names: dict[str, str] = names, prefix: str = prefix) -> str:
            return name and names.get(name, f"{prefix}{name}")

        for place, node in enumerate(graph.node):
            copy = deepcopy(node)
            copy.name = f"{prefix}{place}"
            scopes[copy.name] = _scope(node)
            copy.ClearField("metadata_props")
            copy.input[:], copy.output[:] = map(renamed, node.input), map(renamed, node.output)
            nodes.append(copy)
            if poison and answer in node.output:
                copy.output[list(node.output).index(answer)] = raw = f"{logits[-1]}_raw"
                nodes.append(helper.make_node("Add", [raw, POISON], [logits[-1]], f"{prefix}{POISON}"))
        for weight in graph.initializer:
            copy = deepcopy(weight)
            copy.name = renamed(weight.name)
            initializers.append(copy)
        found = [renamed(info.name) for info in graph.output]
        behind = len(found) - (1 if number == last else 2)
        ends.append([*found[:behind], *([POISON] if poison and number < last else []), *found[behind:]])
    leave = [end[-1] for end in ends[:-1]]
    widths = [step.graph.output[-1 if number == last else -2] for number, step in enumerate(steps)]
    outputs = [_info(name, FLOAT, info) for name, info in zip(logits, widths, strict=True)]
    outputs += [helper.make_tensor_value_info(name, BOOL, [None]) for name in leave]
    return Merged(_model(nodes, given, outputs, initializers), ends, logits, scopes)


def cut_steps(graph: Any, steps: Sequence[Any], ends: Sequence[Sequence[str]]) -> list[Any]:
    """The steps of a quantized graph: each computes what lies behind the ends of the one before.

    Args:
        graph: Quantized, of all steps.
        steps: As they were before.
        ends: From `merge`.

    Returns:
        ONNX models with the inputs and outputs of the given steps, and who has no number behind the states.
    """
    helper, last = import_module("onnx.helper"), len(steps) - 1
    codes, parts = _codes(graph), []
    given = {info.name: info for info in graph.input}
    for number, step in enumerate(steps):
        end, before = ends[number], step.graph.output
        states = len(end) - (1 if number == last else 2)
        names = [codes.get(name, name) if place < states else name for place, name in enumerate(end)]
        found, read = nodes_behind(graph, names, set(given))
        nodes = deepcopy(found)
        inputs = [info for name, info in given.items() if name in read]
        for node in nodes:
            node.input[:] = [given[name].name if name in given else name for name in node.input]
        outputs: list[Any] = []
        for place, name in enumerate(names):
            info = before[place if place < states else place - len(end)]
            if name == POISON:
                info = helper.make_tensor_value_info(name, FLOAT, [None, 1])
            kind = UINT8 if name != end[place] else info.type.tensor_type.elem_type
            outputs.append(_info(name, kind, info))
            if name in given or name in names[:place]:  # an output has a name of its own
                outputs[-1].name = f"output_{place}"
                nodes.append(
                    helper.make_node("Identity", [getattr(given.get(name), "name", name)], [f"output_{place}"])
                )
        weights = [weight for weight in graph.initializer if weight.name in read]
        parts.append(_model(nodes, inputs, outputs, weights))
        given = {name: _named(outputs[place], f"input_{place}") for place, name in enumerate(names[:states])}
    return parts


def _codes(graph: Any) -> dict[str, str]:
    """The codes of tensors that nothing else reads."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return {
        name: found[0].output[0]
        for name, found in readers.items()
        if [node.op_type for node in found] == ["QuantizeLinear"] and found[0].input[0] == name
    }


def _poison(inputs: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Nodes that make `POISON` of floating inputs, none where there are none, and their constants."""
    onnx, numpy = import_module("onnx"), import_module("numpy")
    values = {"zero": numpy.float32(0), "axis": numpy.array([1])}
    nodes = []
    for name in inputs:
        nodes += [
            onnx.helper.make_node("Flatten", [name], [f"{name}_flat"], f"{name}_flat", axis=1),
            onnx.helper.make_node("Mul", [f"{name}_flat", f"{POISON}_zero"], [f"{name}_none"], f"{name}_none"),
            onnx.helper.make_node("ReduceSum", [f"{name}_none", f"{POISON}_axis"], [f"{name}_sum"], f"{name}_sum"),
        ]
    if not nodes:
        return [], []
    constants = [onnx.numpy_helper.from_array(value, f"{POISON}_{name}") for name, value in values.items()]
    sums = [f"{name}_sum" for name in inputs]
    return [*nodes, onnx.helper.make_node("Sum", sums, [POISON], POISON)], constants


def _scope(node: Any) -> str:
    """Which module of the network a node belongs to."""
    found = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
    scopes = [scope for scope in ast.literal_eval(found)[:-1] if scope] if found else []
    return scopes[-1].removeprefix("network.") if scopes else node.op_type


def heads_of(model: Any, logits: Sequence[str]) -> Any:
    """A model that returns the logits alone."""
    graph = model.graph
    nodes, read = nodes_behind(graph, logits)
    weights = [weight for weight in graph.initializer if weight.name in read]
    return _model(nodes, list(graph.input), [info for info in graph.output if info.name in logits], weights)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Any:
    helper = import_module("onnx.helper")
    graph = helper.make_graph(nodes, "part", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _info(name: str, kind: int, like: Any) -> Any:
    """What a value of a type is that has the shape of another."""
    info = type(like)()
    info.type.CopyFrom(like.type)
    info.name, info.type.tensor_type.elem_type = name, kind
    return info


def _named(like: Any, name: str) -> Any:
    return _info(name, like.type.tensor_type.elem_type, like)
