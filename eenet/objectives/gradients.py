"""Gradient equilibrium for a trunk that several exits train (Li, Zhang, Qi, Yang, Huang, ICCV 2019)."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def scale_gradient(state: Any, scale: float) -> Any:
    """The same values, whose gradient is scaled on its way back.

    Args:
        state: Pytree of tensors; those that need no gradient are left alone.
        scale: What the gradient is multiplied with.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> scale_gradient(x, 0.5).sum().backward()
        >>> x.grad.tolist()
        [0.5, 0.5]
    """
    return pytree.tree_map(lambda rows: _Scaled.apply(rows, scale) if rows.requires_grad else rows, state)


def fork(state: Any, exits: int) -> tuple[Any, Any]:
    """Part the state after a stage for the exit that reads there and for the later exits (gradient equilibrium).

    The exit's gradient is scaled by `1 / exits` and the later ones' by `(exits - 1) / exits`, so that every exit has an
    equal share of the gradient wherever it enters the trunk, whose variance then does not grow with their number.

    Args:
        state: Pytree of tensors.
        exits: This exit and those after it, `L - l` for exit `l` of `L` counted from 0.

    Returns:
        The exit's state and the trunk's.
    """
    return scale_gradient(state, 1 / exits), scale_gradient(state, (exits - 1) / exits)
