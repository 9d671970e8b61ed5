"""The operations between two cuts as a function of tensors, which holds no weight and can be copied and pickled."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from eenet.backbones.traced.capture import Captured

_SIZE = torch.ops.aten.sym_size.int


class Stage:
    """A stretch of a graph.

    Args:
        source: Of a Python function `forward(self, *state, *weights, device)` that returns a tuple of tensors.
        weights: Names of the weights that it takes.
    """

    def __init__(self, source: str, weights: tuple[str, ...]) -> None:
        self.source, self.weights = source, weights
        namespace: dict[str, Any] = {"torch": torch, "operator": operator, "math": math, "device": torch.device}
        namespace |= {"inf": math.inf, "nan": math.nan, "NoneType": type(None)}
        exec(compile(source, "<stage>", "exec"), namespace)
        self.function: Callable[..., tuple[Tensor, ...]] = namespace["forward"]

    def __call__(self, state: Sequence[Tensor], weights: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
        """Run it: tensors whose first axis is the batch in, and out."""
        return self.function(None, *state, *weights, device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stage:
        return self

    def __reduce__(self) -> tuple[type[Stage], tuple[str, tuple[str, ...]]]:
        return Stage, (self.source, self.weights)


def make_stage(
    captured: Captured,
    data: set[fx.Node],
    names: dict[fx.Node, str],
    operations: Sequence[fx.Node],
    given: Sequence[fx.Node],
    wanted: Sequence[fx.Node],
) -> Stage:
    """Take a stretch out of a graph.

    What follows from weights and lengths alone is computed again, and lengths are read from the tensors at hand.

    Args:
        captured: The graph.
        data: What depends on the samples.
        names: Of the weights' placeholders.
        operations: Those of the stretch, in their order.
        given: The live tensors before it.
        wanted: Those after it.
    """
    graph, copies, used = fx.Graph(), dict[fx.Node, fx.Node](), list[fx.Node]()
    axes = {node: captured.batch_axes(node)[0] for node in (*given, *wanted) if captured.batch_axes(node)}
    lengths: dict[Any, tuple[fx.Node, int]] = {}
    for number, node in enumerate(given):
        copies[node] = graph.placeholder(f"state_{number}")
    for node in given:
        if axes[node]:
            copies[node] = graph.call_function(torch.ops.aten.movedim.int, (copies[node], 0, axes[node]))
        for axis, size in enumerate(node.meta["val"].shape):
            lengths.setdefault(captured.length(size), (copies[node], axis))

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node.op == "placeholder":
                if node not in names and node is not captured.device:
                    raise ValueError(f"{node} is not at hand")
                if node in names:
                    used.append(node)
                copies[node] = graph.placeholder(f"weight_{len(used)}" if node in names else "place")
            elif node.target is _SIZE and node.args[0] in data and node.args[0] not in copies:
                copies[node] = length(captured.length(node.meta["val"]))
            elif node in data:
                raise ValueError(f"{node} is not at hand")
            else:
                for source in node.all_input_nodes:
                    copied(source)
                copies[node] = graph.node_copy(node, copied)
        return copies[node]

    def length(expression: Any) -> Any:
        if expression in lengths:
            return graph.call_function(_SIZE, lengths[expression])
        if expression.is_Integer:
            return int(expression)
        if not (expression.is_Mul or expression.is_Add):
            raise ValueError(f"the length {expression} is not at hand")
        first, *others = map(length, expression.args)
        combine = operator.mul if expression.is_Mul else operator.add
        for other in others:
            first = graph.call_function(combine, (first, other))
        return first

    for node in operations:
        for source in node.all_input_nodes:
            copied(source)
        copies[node] = graph.node_copy(node, copied)
    results = [copied(node) for node in wanted]
    moved = [
        graph.call_function(torch.ops.aten.movedim.int, (result, axes[node], 0)) if axes.get(node) else result
        for node, result in zip(wanted, results, strict=True)
    ]
    if captured.device not in copies:
        graph.placeholder("place")
    graph.output(tuple(moved))
    return Stage(_source(graph, len(given), [copies[node] for node in used]), tuple(names[node] for node in used))


def _source(graph: fx.Graph, states: int, weights: list[fx.Node]) -> str:
    """The graph as Python, its arguments in the order of states, weights and device."""
    ordered, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    placeholders = graph.find_nodes(op="placeholder")
    named = {node.target: node for node in placeholders}
    order = [*(named[f"state_{number}"] for number in range(states)), *weights, named["place"]]
    for node in order:
        copies[node] = ordered.placeholder(str(node.target))
    for node in graph.nodes:
        if node.op not in ("placeholder", "output"):
            copies[node] = ordered.node_copy(node, copies.__getitem__)
    ordered.output(fx.node.map_arg(graph.output_node().args[0], copies.__getitem__))
    return ordered.python_code("self").src
