"""Writing a traced step as the JSON that `eenet.runtime.program.Program` reads, and its weights by name."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from eenet.errors import UserError
from eenet.runtime.operators import OPERATORS
from eenet.runtime.trace import Traced, needed_nodes, writes

PYTHON = {
    getattr(operator, name): f"python.{name}" for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg")
}


def encode(step: Traced) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A step's JSON values, and the weights that it reads; a `UserError` for an operation that none may use."""
    program, graph = step.program, step.program.graph
    if program.graph_signature.buffers_to_mutate:
        raise UserError("backbone", type(step.module.network.backbone).__name__, "changes its buffers as it runs")
    needed = needed_nodes(graph)
    inputs, names, weights = [], [], dict[str, Tensor]()
    for node, spec in zip(graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
        elif node in needed:
            name, tensor = _weight(step, spec.target)
            names.append((node, name))
            weights[name] = tensor
    numbers = {node: number for number, node in enumerate([*inputs, *(node for node, _ in names)])}
    operations = []
    for node in graph.nodes:
        if node.op == "call_function" and node in needed:
            if writes(node) and not node.users:
                problem = f"the step to {step.name} writes into a part of a tensor ({node.target})"
                family = type(step.module.network.backbone).__name__
                raise UserError("backbone", family, f"{problem}, which exported programs may not; --format onnx may")
            args = [_encode(value, numbers) for value in node.args]
            kwargs = {key: _encode(value, numbers) for key, value in node.kwargs.items()}
            operations.append([_name(step, node.target), args, kwargs])
            numbers[node] = len(numbers)
    (outputs,) = (node.args[0] for node in graph.nodes if node.op == "output")
    content = {
        "inputs": len(inputs),
        "weights": [name for _, name in names],
        "operations": operations,
        "outputs": [_encode(value, numbers) for value in outputs],
    }
    return content, weights


def _weight(step: Traced, target: str | None) -> tuple[str, Tensor]:
    """A weight by its name in the network, or a constant under the name of the step."""
    assert target is not None
    state = step.program.state_dict
    tensor = state[target] if target in state else step.program.constants[target]
    shared = target.removeprefix("network.") if target in state else f"{step.name}.{target}"
    return shared, tensor.detach()


def _name(step: Traced, target: Callable[..., Any] | str) -> str:
    """The operation's name; that of `relu` for `relu_`, where the graph reads what an operation returned."""
    name = PYTHON[target] if target in PYTHON else re.sub(r"(?<!_)_\.", ".", str(target))
    if name not in OPERATORS:
        family = type(step.module.network.backbone).__name__
        problem = f"the step to {step.name} needs {name}, which exported programs may not use"
        raise UserError("backbone", family, f"{problem}; --format onnx may take it")
    return name


def _encode(value: Any, numbers: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"value": numbers[value]}
    if isinstance(value, (list, tuple)):
        return [_encode(item, numbers) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return {"number": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, torch.layout):
        return None
    return value
