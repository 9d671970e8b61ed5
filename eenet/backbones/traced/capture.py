"""Capturing a model as one graph of tensor operations for a batch of any size, by `torch.export`.

The graph keeps what training needs (batch norm writes its statistics, dropout draws) and loses what ties it to one
moment: in-place operations whose effect the result carries, devices, checks of dtypes, regions of autocast.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind
from torch.fx.experimental import _config
from torch.utils import _pytree as pytree

from eenet.errors import UserError

_CHECKS = ("_assert", "sym_constrain", "_guards_fn")
_GRAD, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


class Call(nn.Module):
    """A model as a function from flat tensors to logits.

    Args:
        model: Takes a tensor, or named tensors; returns logits, or an output that holds them as `logits` or first.
        spec: Structure of its input.
    """

    def __init__(self, model: nn.Module, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        inputs = pytree.tree_unflatten(list(tensors), self.spec)
        return call_model(self.model, inputs)


def call_model(model: nn.Module, inputs: Any) -> Tensor:
    """Logits of a model's output, which may be a tensor, hold `logits`, or be a tuple that begins with them.

    Raises:
        UserError: There is no tensor there.
    """
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple) and output and model.training:
        found = output[0]  # auxiliary heads, which train beside the first
    if not isinstance(found, Tensor):
        kind = type(output).__name__
        raise UserError("model", type(model).__name__, f"returns a {kind}, and not logits as one tensor; wrap it")
    return found


_unguarded: Any = _config.patch  # type: ignore[attr-defined]


@dataclass
class Captured:
    """A model's graph in one mode.

    Attributes:
        graph: Placeholders first: inputs, weights, then the device.
        inputs: Placeholders of the inputs, in the order of their leaves.
        weights: Placeholders of parameters and buffers, and their names below `model`.
        constants: Placeholders of tensors that the graph alone has.
        device: Placeholder of the device.
        kept: In-place operations that stay so, and the node whose memory each writes.
    """

    graph: fx.Graph
    inputs: list[fx.Node]
    weights: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    device: fx.Node
    kept: dict[fx.Node, fx.Node] = field(default_factory=dict)

    @property
    def output(self) -> fx.Node:
        """The node of the logits."""
        (node,) = self.graph.find_nodes(op="output")
        return node.args[0][0]

    @property
    def operations(self) -> list[fx.Node]:
        """The operations, in their order."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    def batch_axes(self, node: fx.Node) -> list[int]:
        """The axes of a tensor that are as long as the batch, whatever that is."""
        batch = self.length(self.inputs[0].meta["val"].shape[0])
        return [axis for axis, size in enumerate(node.meta["val"].shape) if self.length(size) == batch]

    def length(self, size: Any) -> Any:
        """A length as an expression, or as a number where it is fixed; all inputs have one batch and as many tokens."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if not self.equal or expression.is_Symbol:
            return self.equal.get(expression, expression)
        return expression.subs(self.equal)

    @cached_property
    def equal(self) -> dict[Any, Any]:
        """The symbols of later inputs' lengths, and those of the first input that they equal."""
        shapes = [node.meta["val"].shape for node in self.inputs]
        return {
            size.node.expr: first.node.expr
            for shape in shapes[1:]
            for size, first in zip(shape, shapes[0], strict=False)
            if isinstance(size, torch.SymInt) and isinstance(first, torch.SymInt)
        }

    def lengths(self) -> list[Any]:
        """The lengths that may vary: the batch's first, then that of texts."""
        sizes = [size for node in self.inputs for size in node.meta["val"].shape if isinstance(size, torch.SymInt)]
        return list(dict.fromkeys(map(self.length, sizes)))


def capture(model: nn.Module, example: Any, training: bool) -> Captured:
    """Capture a model in one mode.

    Args:
        model: The model; its modes are put back.
        example: Its input, three rows or more; the second axis of whole numbers `(batch, tokens)` may vary, too.
        training: Which mode.

    Raises:
        UserError: The model has no graph that holds for every batch.
    """
    leaves, spec = pytree.tree_flatten(example)
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        # The patch makes a branch on the batch size an error, where a batch of one would be another case.
        with plain_attention(), _unguarded(backed_size_oblivious=True), torch.enable_grad():
            call = Call(model, spec).train(training)
            program = _export(call, leaves)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return _normalised(program)


def _export(call: Call, leaves: list[Tensor]) -> torch.export.ExportedProgram:
    texts = [leaf.ndim == 2 and not leaf.is_floating_point() for leaf in leaves]
    wishes = [[[0, 1] if text else [0] for text in texts]] + ([[[0]] * len(leaves)] if any(texts) else [])
    for wish in wishes:
        shapes = (tuple(dict.fromkeys(axes, Dim.DYNAMIC) for axes in wish),)
        try:
            return torch.export.export(call, tuple(leaves), dynamic_shapes=shapes, strict=False)
        except UserError:
            raise
        except Exception as error:  # torch's tracer lets any error of the model through
            failure = error
    raise _refusal(call.model, failure) from failure


def _refusal(model: nn.Module, error: Exception) -> UserError:
    said, kind = str(error).strip(), type(error).__name__
    if "data-dependent" in said or "GuardOnDataDependent" in kind or "is not tracing" in said:
        problem = "its control flow depends on the values of its inputs; there is no one graph to cut"
    elif "specializ" in said or "ConstraintViolation" in kind or "Constraints violated" in said:
        problem = "it computes something else for other batch sizes, so no sample could leave alone"
    else:
        problem = f"torch.export does not capture it ({kind}: {said.partition(chr(10))[0][:200]})"
    return UserError("model", type(model).__name__, problem)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention modules by their plain operations, in evaluation as in training."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _normalised(program: torch.export.ExportedProgram) -> Captured:
    graph = program.graph_module.graph
    _inline(graph, program.graph_module)
    for node in list(graph.nodes):
        if node.op == "call_function" and any(check in str(node.target) for check in _CHECKS):
            graph.erase_node(node)
    inputs, weights, constants = list[fx.Node](), dict[fx.Node, str](), dict[fx.Node, Tensor]()
    for node, spec in zip(graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            weights[node] = spec.target.removeprefix("model.")
        else:
            constants[node] = program.constants[spec.target]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        device = graph.placeholder("device")
    captured = Captured(graph, inputs, weights, constants, device)
    _free_of_device(captured)
    _out_of_place(captured)
    _drop_unused(captured)
    graph.lint()
    return captured


def _inline(graph: fx.Graph, owner: nn.Module) -> None:
    """Put the operations of a region without gradients, or without autocast, in the region's place."""
    for region in list(graph.nodes):
        name = str(getattr(region.target, "__name__", region.target)) if region.op == "call_function" else ""
        if name not in (_GRAD, _AUTOCAST):
            if isinstance(region.target, torch._ops.HigherOrderOperator):
                raise UserError("model", name, "its control flow depends on data; there is no one graph to cut")
            continue
        settings = 1 if name == _GRAD else 4
        if name == _AUTOCAST and region.args[2]:
            raise UserError("model", name, "runs a part of itself under autocast; train with trainer.precision instead")
        inner: Any = owner.get_submodule(region.args[settings].target)
        _inline(inner.graph, inner)
        copies = dict(zip(inner.graph.find_nodes(op="placeholder"), region.args[settings + 1 :], strict=True))
        with graph.inserting_before(region):
            for node in inner.graph.nodes:
                if node.op == "call_function":
                    copies[node] = graph.node_copy(node, copies.__getitem__)
            results = [copies[node] for node in inner.graph.output_node().args[0]]
            if name == _GRAD and not region.args[0]:
                results = [_detached(graph, node) for node in results]
        for user in list(region.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(region)
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if not isinstance(node.meta.get("val"), Tensor):
        return node
    detached = graph.call_function(torch.ops.aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def _free_of_device(captured: Captured) -> None:
    """Read the device at run time where the graph names the one on which it was captured."""

    def placed(value: Any) -> Any:
        return captured.device if isinstance(value, torch.device) else value

    for node in captured.operations:
        node.args = fx.node.map_aggregate(node.args, placed)
        node.kwargs = fx.node.map_aggregate(node.kwargs, placed)


def written(node: fx.Node) -> list[fx.Node]:
    """The arguments that an operation writes."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    places = [
        node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [place for place in places if isinstance(place, fx.Node)]


def root_of(node: fx.Node) -> fx.Node:
    """The node whose memory another shows: a view of a view of it, or what an operation in place returned."""
    while node.op == "call_function":
        if node.target is operator.getitem:
            node = next(iter(node.all_input_nodes))
            continue
        schema = getattr(node.target, "_schema", None)
        fresh = schema is None or not schema.returns or schema.returns[0].alias_info is None
        if fresh and not _may_view(node):
            return node
        node = next(iter(node.all_input_nodes))
    return node


_MAYBE = ("reshape", "flatten", "contiguous", "to.", "expand_as", "view_as", "movedim", "chunk", "unflatten", "dropout")


def _may_view(node: fx.Node) -> bool:
    """Whether a composite operation may return a view of its first argument, of which its schema says nothing."""
    name = str(node.target)
    return bool(node.all_input_nodes) and any(name.startswith(f"aten.{part}") for part in _MAYBE)


def _out_of_place(captured: Captured) -> None:
    """Rewrite in-place operations whose effect nobody sees but through their result; the others are `kept`."""
    order = {node: place for place, node in enumerate(captured.graph.nodes)}
    for node in captured.operations:
        for target in written(node):
            root, plain = root_of(target), _functional(node.target)
            through = _shown_by(node)
            others = (user for shown in _shown_by(root) - through for user in shown.users)
            seen = any(order[user] > order[node] and user not in through for user in others)
            own = root.op == "call_function" or root in captured.inputs
            if own and not seen and plain is not None:
                node.target = plain
            else:
                captured.kept[node] = root


def _shown_by(node: fx.Node) -> set[fx.Node]:
    """A node and what shows its memory."""
    shown, waiting = set[fx.Node](), [node]
    while waiting:
        one = waiting.pop()
        if one not in shown:
            shown.add(one)
            waiting.extend(user for user in one.users if user.op == "call_function" and root_of(user) is root_of(node))
    return shown


def _functional(target: Any) -> Any:
    """The operation that returns what one in place would write, `None` where there is none, or it draws at random."""
    if torch.Tag.nondeterministic_seeded in target.tags:
        return None
    name, overload = target._schema.name.partition("::")[2], target._overloadname
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    return getattr(packet, overload, None) if name.endswith("_") else None


def _drop_unused(captured: Captured) -> None:
    for node in reversed(captured.operations):
        if not node.users and node not in captured.kept:
            captured.graph.erase_node(node)
