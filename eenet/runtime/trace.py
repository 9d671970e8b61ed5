"""Tracing the steps of a routed network, each into one graph for batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from eenet.errors import UserError
from eenet.policies.base import Policy
from eenet.routing.steps import Step, make_steps, walk

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork


class FlatModule(nn.Module):
    """A function of a pytree as a module from flat tensors to flat tensors.

    Args:
        network: Whose weights the function reads.
        policy: The same.
        function: From a pytree to flat tensors.
        spec: Structure of its argument.
    """

    def __init__(
        self,
        network: EarlyExitNetwork,
        policy: Policy | None,
        function: Callable[[Any], tuple[Tensor, ...]],
        spec: pytree.TreeSpec,
    ) -> None:
        super().__init__()
        self.network, self.policy, self.function, self.spec = network, policy, function, spec

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function returns."""
        return self.function(pytree.tree_unflatten(tensors, self.spec))


class Traced(NamedTuple):
    """A function and what it was traced on.

    Attributes:
        name: What it computes: `exit_0` for the step to the first exit, see `Tree.place_name`.
        module: The function.
        program: Its graph.
        tensors: Its argument's leaves.
        dynamic: For each of those, the axes whose length may vary.
    """

    name: str
    module: FlatModule
    program: ExportedProgram
    tensors: tuple[Tensor, ...]
    dynamic: tuple[dict[int, Any], ...]


def flatten(handed_on: Any, logits: Tensor, leave: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors that a step returns, in the order of its program's outputs."""
    return (*pytree.tree_leaves(handed_on), logits, *(() if leave is None else (leave,)))


@torch.no_grad()
def trace(network: EarlyExitNetwork, policy: Policy, example: Any) -> Iterator[tuple[int, Traced]]:
    """Trace the step to every place that the policy reaches, and say its number.

    Args:
        network: In evaluation mode.
        policy: Decides who leaves.
        example: A batch of at least three rows; texts of at least three tokens, without padding.

    Raises:
        UserError: A step depends on the values of its inputs or on their length.
    """
    tree, steps = network.tree, make_steps(network, policy)
    # all before the first is traced, so that what a model makes at its first call is there
    whole, smaller = (
        {place: given for place, given, _ in walk(tree, policy.first_node, steps, inputs)}
        for inputs in (example, shortened(network, example))
    )
    for place in whole:

        def flat(inputs: Any, step: Step = steps[place]) -> tuple[Tensor, ...]:
            return flatten(*step(inputs))

        yield place, trace_function(tree.place_name(place), network, policy, flat, whole[place], smaller[place])


def trace_function(
    name: str,
    network: EarlyExitNetwork,
    policy: Policy | None,
    function: Callable[[Any], tuple[Tensor, ...]],
    example: Any,
    smaller: Any,
) -> Traced:
    """Trace one function.

    Args:
        name: What it computes, for messages.
        network: Whose weights it reads, in evaluation mode.
        policy: The same.
        function: From a pytree to flat tensors.
        example: Its argument.
        smaller: The same, shorter along each axis whose length may vary, at least two long there.

    Raises:
        UserError: It depends on the values of its inputs or on their length.
    """
    leaves, spec = pytree.tree_flatten(pytree.tree_map(Tensor.contiguous, example))
    module = FlatModule(network, policy, function, spec).eval()
    dynamic = tuple(map(_differing, leaves, pytree.tree_leaves(smaller)))
    try:
        program = torch.export.export(module, tuple(leaves), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # torch's tracer lets any error of the model through
        family, said = type(network.backbone).__name__, str(error).strip().partition("\n")[0]
        problem = f"the step to {name} cannot be traced for any batch size ({type(error).__name__}: {said})"
        raise UserError("backbone", family, problem) from error
    return Traced(name, module, program, tuple(leaves), dynamic)


def shortened(network: EarlyExitNetwork, example: Any) -> Any:
    """The example without its last row and, for texts, without its last token: what may vary is what differs."""
    if network.backbone.max_tokens is None:
        return pytree.tree_map(lambda rows: rows[:-1], example)
    return pytree.tree_map(lambda rows: rows[:-1, :-1], example)


def needed_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the outputs depend on, by what writes into a tensor too; checks of the tracer are left out."""
    needed, waiting = set[fx.Node](), [node for node in graph.nodes if node.op == "output" or writes(node)]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return needed


def writes(node: fx.Node) -> bool:
    """Whether an operation writes into its arguments, as `rows[:, 0] = 0` does, whose result nobody reads."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _differing(one: Tensor, other: Tensor) -> dict[int, Any]:
    return {axis: Dim.DYNAMIC for axis in range(one.ndim) if one.shape[axis] != other.shape[axis]}
