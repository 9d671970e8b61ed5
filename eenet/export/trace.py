"""Tracing the steps of a routed network, each into one graph for batches of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from eenet.errors import UserError
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy
from eenet.runtime.steps import Carried, Left, run_step


class StepModule(nn.Module):
    """One step as a module from flat tensors to flat tensors.

    Args:
        network: In evaluation mode.
        policy: Decides who leaves.
        exit: Number of the exit that the step ends with.
        spec: Structure of what is carried to it.
    """

    def __init__(self, network: EarlyExitNetwork, policy: Policy, exit: int, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.network, self.policy, self.exit, self.spec = network, policy, exit, spec

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What goes on, the logits, and who leaves."""
        return flatten(*run_step(self.network, self.policy, self.exit, pytree.tree_unflatten(tensors, self.spec)))


class Traced(NamedTuple):
    """A step and what it was traced on.

    Attributes:
        exit: Number of the exit.
        module: The step.
        program: Its graph.
        tensors: What was carried to it.
        dynamic: For each of those, the axes whose length may vary.
    """

    exit: int
    module: StepModule
    program: ExportedProgram
    tensors: tuple[Tensor, ...]
    dynamic: tuple[dict[int, Any], ...]


def flatten(carried: Carried, left: Left) -> tuple[Tensor, ...]:
    """The tensors that a step returns, in the order of its program's outputs."""
    return (*pytree.tree_leaves(carried), left.logits, *(() if left.leave is None else (left.leave,)))


@torch.no_grad()
def trace(network: EarlyExitNetwork, policy: Policy, example: Any, smaller: Any) -> Iterator[Traced]:
    """Trace every step.

    Args:
        network: In evaluation mode, on the CPU.
        policy: Decides who leaves.
        example: A batch of at least three rows.
        smaller: The same, shorter along each axis whose length may vary, at least two long there.

    Raises:
        UserError: A step depends on the values of its inputs or on their length.
    """
    carried, other = Carried(example), Carried(smaller)
    for exit in range(network.num_exits):
        leaves, spec = pytree.tree_flatten(carried)
        module = StepModule(network, policy, exit, spec).eval()
        dynamic = tuple(map(_differing, leaves, pytree.tree_leaves(other)))
        try:
            program = torch.export.export(module, tuple(leaves), dynamic_shapes=(dynamic,), strict=False)
        except Exception as error:  # torch's tracer lets any error of the model through
            family, said = type(network.backbone).__name__, str(error).strip().partition("\n")[0]
            problem = f"the step to exit {exit} cannot be traced for any batch size ({type(error).__name__}: {said})"
            raise UserError("backbone", family, problem) from error
        yield Traced(exit, module, program, tuple(leaves), dynamic)
        carried, _ = run_step(network, policy, exit, carried)
        other, _ = run_step(network, policy, exit, other)


def _differing(one: Tensor, other: Tensor) -> dict[int, Any]:
    return {axis: Dim.DYNAMIC for axis in range(one.ndim) if one.shape[axis] != other.shape[axis]}
