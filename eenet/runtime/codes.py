"""A traced step as code and what it reads: steps that differ in weights and thresholds alone have the same code."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from eenet import __version__
from eenet.runtime.trace import Traced, needed_nodes

VIEWS = {getattr(torch.ops.aten, name).default for name in ("alias", "detach", "permute", "unsqueeze", "view", "t")} | {
    torch.ops.aten.select.int,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.transpose.int,
}
"""What is done to a weight once and not at every call: the result lies in the weight's own memory."""

COMPARISONS = {
    getattr(torch.ops.aten, name).Scalar: getattr(torch.ops.aten, name).Tensor for name in ("ge", "gt", "le", "lt")
}
"""With a number, and with a tensor that holds it."""


class Code(NamedTuple):
    """A step without what it reads.

    Attributes:
        module: From the step's inputs to its outputs, with a buffer for each of what it reads, named by their order.
        reads: Those, in this order: weights of the network, parts of them, and thresholds.
    """

    module: fx.GraphModule
    reads: list[Tensor]

    def named(self) -> dict[str, Tensor]:
        """What it reads by the names of the buffers."""
        return {f"read_{place}": tensor for place, tensor in enumerate(self.reads)}

    def program(self, traced: Traced) -> ExportedProgram:
        """The graph of the code, for the sizes for which it was traced."""
        return torch.export.export(self.module, traced.tensors, dynamic_shapes=traced.dynamic, strict=False)

    def key(self, traced: Traced) -> str:
        """What machine code follows from: the graph, the kinds of all tensors, the versions, the machine."""
        tensors = [(*tensor.shape, *tensor.stride(), tensor.dtype, tensor.device.type) for tensor in self.reads]
        tensors += [
            (*("any" if axis in free else size for axis, size in enumerate(tensor.shape)), tensor.dtype, tensor.device)
            for tensor, free in zip(traced.tensors, traced.dynamic, strict=True)
        ]
        device = traced.tensors[0].device
        chip = torch.cuda.get_device_properties(device) if device.type == "cuda" else platform.machine()
        cast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        settings = (torch.get_num_threads(), cast, torch.get_float32_matmul_precision())
        where = (__version__, torch.__version__, chip, _processor(), torch.backends.cpu.get_cpu_capability(), *settings)
        content = "\n".join(map(str, [*where, *tensors, *_lines(self.module)]))
        return hashlib.sha256(content.encode()).hexdigest()


@torch.no_grad()
def code_of(traced: Traced) -> Code:
    """Take from a traced step what it reads."""
    program = traced.program
    held = program.state_dict | program.constants
    needed, graph, root = needed_nodes(program.graph), fx.Graph(), nn.Module()
    known: dict[fx.Node, Any] = {}
    made: dict[fx.Node, fx.Node] = {}
    reads: dict[Any, tuple[fx.Node, Tensor]] = {}

    def reading(tensor: Tensor) -> fx.Node:
        # the compiler makes one constant of what lies in one place, so that steps where two differ are other code
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in reads:
            name = f"read_{len(reads)}"
            root.register_buffer(name, tensor)
            reads[place] = graph.get_attr(name), tensor
        return reads[place][0]

    def copied(node: fx.Node) -> fx.Node:
        return reading(known[node]) if node in known else made[node]

    for node, spec in zip(program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            made[node] = graph.placeholder(node.name)
        else:
            known[node] = held[spec.target].detach() if node in needed else None
    for node in program.graph.nodes:
        if node.op == "placeholder" or node not in needed:
            continue
        if node.op == "get_attr":
            setattr(root, node.target, getattr(program.graph_module, node.target))
        if node.target in VIEWS and set(node.all_input_nodes) <= set(known):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.get)
            known[node] = _aligned(node.target(*args, **kwargs))
            continue
        if _with_number(node) and (score := node.args[0].meta["val"]).is_floating_point():
            limit = reading(torch.tensor(node.args[1], dtype=score.dtype, device=traced.tensors[0].device))
            made[node] = graph.call_function(COMPARISONS[node.target], (copied(node.args[0]), limit))
        else:
            made[node] = graph.node_copy(node, copied)
    module = fx.GraphModule(root, graph)
    return Code(module, [tensor for _, tensor in reads.values()])


def _aligned(part: Tensor) -> Tensor:
    """A part of a weight, copied where kernels of a GPU could not read it: they take 16 bytes at a time."""
    return part if part.device.type == "cpu" or part.data_ptr() % 16 == 0 else part.clone()


def _with_number(node: fx.Node) -> bool:
    """Whether a node compares with a number that is written down, and not with a length."""
    return node.target in COMPARISONS and not isinstance(node.args[1], fx.Node)


@cache
def _processor() -> str:
    """What the processor can do, which the compiler uses: machines of one kind may share a folder without that."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.partition(":")[2].split()))
    return platform.processor()


def _lines(module: fx.GraphModule) -> list[str]:
    """The graph as text, nodes by their number; of graphs within it, too."""
    numbers: dict[fx.Node, str] = {}
    lines = []
    for node in module.graph.nodes:
        numbers[node] = f"%{len(numbers)}"
        args: Sequence[Any] = fx.node.map_arg((node.args, node.kwargs), numbers.get)
        lines.append(f"{node.op} {'' if node.op == 'placeholder' else node.target} {args}")
        inner = getattr(module, node.target, None) if node.op == "get_attr" else None
        if isinstance(inner, Tensor) and not node.target.startswith("read_"):
            lines.append(f"{inner.dtype} {inner.tolist()}")
        if isinstance(inner, fx.GraphModule):
            lines += _lines(inner)
    return lines
