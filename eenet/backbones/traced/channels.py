"""Which axis of a live tensor holds its channels: the nearest operations with weights before and after it say so."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from eenet.errors import UserError

_SECOND = ("conv", "batch_norm", "group_norm", "instance_norm", "avg_pool", "max_pool", "adaptive", "upsample", "prelu")
_LAST = ("linear", "layer_norm", "rms_norm", "embedding")
_EACH = ("mul", "add", "sub", "div", "addcmul")
_SHOWN = ("view", "reshape", "unsqueeze")
_FAR = 40
"""Operations to look through."""


def channel_axis(node: fx.Node, name: str) -> int:
    """The axis of a tensor's channels.

    Args:
        node: The tensor.
        name: Of the cut, for messages.

    Raises:
        UserError: Its neighbours disagree, or say nothing.
    """
    ndim = _tensor(node).ndim
    if ndim == 2:
        return 1
    before, after = _before(node, _FAR), _after(node, _FAR)
    said = {axis for axis in (before, after) if axis is not None}
    if not said:
        said = {axis for part in _parts(node) if (axis := _after(part, _FAR)) is not None}
    if len(said) != 1:
        why = "the operations around it disagree on" if said else "no operation around it says"
        shape = ["n", *map(str, _tensor(node).shape[1:])]
        problem = f"{why} which axis of ({', '.join(shape)}) holds the channels; give channels: first or last"
        raise UserError("backbone.channels", name, problem)
    return said.pop()


def _tensor(node: fx.Node) -> Tensor:
    return node.meta["val"]


def _parts(node: fx.Node) -> list[fx.Node]:
    """What a tensor is split into, as a shuffled block is."""
    splits = [user for user in node.users if isinstance(user.meta.get("val"), list | tuple)]
    return [part for split in splits for part in split.users if _tensor(part).ndim == _tensor(node).ndim]


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0].strip("_")


def _own(node: fx.Node, ndim: int) -> int | None:
    """The channels' axis of what an operation with weights takes or gives."""
    name = _name(node)
    if name in _EACH:
        axes = {axis for source in node.all_input_nodes if (axis := _scaled(source, ndim)) is not None}
        return axes.pop() if len(axes) == 1 else None
    if any(name.startswith(part) for part in _SECOND):
        return 1
    several = name.startswith("layer_norm") and len(node.args[1]) > 1  # type: ignore[arg-type]
    return ndim - 1 if any(name.startswith(part) for part in _LAST) and not several else None


def _scaled(node: fx.Node, ndim: int) -> int | None:
    """The axis along which a weight, shown as a vector, scales or shifts a tensor of so many axes."""
    source = node
    while source.op == "call_function" and _name(source) in _SHOWN:
        source = source.all_input_nodes[0]
    value = node.meta.get("val")
    if source.op != "placeholder" or not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    wide = [axis for axis, size in enumerate(value.shape) if size != 1]
    if value.ndim > ndim or len(wide) != 1 or not isinstance(value.shape[wide[0]], int):
        return None
    return ndim - value.ndim + wide[0]


def _before(node: fx.Node, far: int) -> int | None:
    if node.op != "call_function" or not far:
        return None
    value = node.meta["val"]
    if isinstance(value, Tensor) and (own := _own(node, value.ndim)) is not None:
        return own
    for source in node.all_input_nodes:
        if isinstance(source.meta.get("val"), Tensor) and (axis := _before(source, far - 1)) is not None:
            found = _moved(node, source, axis, True)
            if found is not None:
                return found
    return None


def _after(node: fx.Node, far: int) -> int | None:
    if not far:
        return None
    for user in node.users:
        if user.op != "call_function" or not isinstance(user.meta.get("val"), Tensor):
            continue
        first = node is user.all_input_nodes[0] or _name(user) in _EACH
        if first and (own := _own(user, _tensor(node).ndim)) is not None:
            return own
        if (axis := _after(user, far - 1)) is not None and (found := _moved(user, node, axis, False)) is not None:
            return found
    return None


def _moved(node: fx.Node, source: fx.Node, axis: int, forward: bool) -> int | None:
    """Where an axis of an operation's argument lies in its result, or the other way, `None` where that is unknown."""
    one, other = _tensor(source), node.meta["val"]
    if not isinstance(other, Tensor):
        return None
    name, args = _name(node), node.args
    if name in ("permute", "transpose", "swapaxes", "t", "movedim"):
        order = _order(name, args, one.ndim)
        if order is None:
            return None
        return order.index(axis) if forward else order[axis]
    start, end = (one, other) if forward else (other, one)
    if axis >= start.ndim:
        return None
    if start.ndim == end.ndim and (
        start.shape == end.shape or name in ("cat", "slice", "pad", "constant_pad_nd", "roll")
    ):
        return axis
    size, last = start.shape[axis], start.ndim - 1
    if axis == last and end.shape[-1] == size:
        return end.ndim - 1
    if axis == 1 and end.ndim > 1 and end.shape[1] == size:
        return 1
    return None


def _order(name: str, args: tuple[Any, ...], ndim: int) -> list[int] | None:
    """The permutation that an operation makes: the argument's axis for each axis of the result."""
    if name == "permute":
        return [axis % ndim for axis in args[1]]
    order = list(range(ndim))
    if name == "movedim":
        if not isinstance(args[1], int):
            return None
        order.insert(args[2] % ndim, order.pop(args[1] % ndim))
        return order
    one, other = (0, 1) if name == "t" else (args[1] % ndim, args[2] % ndim)
    order[one], order[other] = order[other], order[one]
    return order
