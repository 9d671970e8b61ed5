"""The router: steps run on the samples that are still there, grouped by where they go, until nobody is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from eenet.backbones.base import select
from eenet.policies.base import Policy
from eenet.profile import Costs
from eenet.routing.compaction import Compaction
from eenet.routing.steps import Routable, Step, make_steps


class Routed(NamedTuple):
    """What routed inference returns, in the order of the inputs.

    Attributes:
        logits: Of the exit at which each sample left, `(batch, classes)`.
        exits: Number of that exit, `(batch,)`.
        macs: What each sample cost in MACs, int64 `(batch,)`.
        nodes: Node of the network's tree at which each sample left, `(batch,)`; in a chain, the exit.
        bitops: What each sample cost in BitOPs, int64 `(batch,)`; `None` where nothing is quantized.
    """

    logits: Tensor
    exits: Tensor
    macs: Tensor
    nodes: Tensor
    bitops: Tensor | None = None


def route(
    network: Routable,
    inputs: Any,
    policy: Policy,
    compaction: Compaction = Compaction(),  # noqa: B008
    steps: Sequence[Step] | None = None,
) -> Routed:
    """Run only what each sample needs.

    Samples that have left are dropped from the batch where that pays, and when all have left nothing more runs. Where
    the tree branches, all samples that go on at one width run together. The result equals gathering `network(inputs)`
    at the decided nodes, to float precision; a quantizer may enlarge the rounding of other batch sizes to a step of its
    grid. The host waits for the device once per step, to know how many leave.

    Args:
        network: The network, in evaluation mode.
        inputs: A batch as the backbone takes it.
        policy: Decides who leaves, and where others go.
        compaction: When samples that have left are dropped, in a chain.
        steps: One per place, such as compiled ones; made from network and policy when `None`.

    Returns:
        Logits, exits and costs in the order of the inputs.
    """
    return route_steps(
        network, inputs, make_steps(network, policy) if steps is None else steps, compaction, policy.first_node
    )


def route_steps(
    network: Routable, inputs: Any, steps: Sequence[Step], compaction: Compaction, first_node: int = 0
) -> Routed:
    """As `route`, for steps that hold their policy; `first_node` is where it sends everybody."""
    if torch.is_grad_enabled():
        with torch.no_grad():
            return route_steps(network, inputs, steps, compaction, first_node)
    batch = len(inputs if isinstance(inputs, Tensor) else pytree.tree_leaves(inputs)[0])
    if network.tree.branches:
        return routed(network.costs, *_route_tree(network, inputs, batch, steps, first_node))
    if batch == 1:
        return _route_one(network.costs, inputs, steps)
    return routed(network.costs, *_route_batch(network, inputs, batch, compaction, steps))


def routed(costs: Costs, logits: Tensor, nodes: Tensor) -> Routed:
    """The result for samples that left at some nodes.

    Args:
        costs: The network's.
        logits: `(batch, classes)`.
        nodes: `(batch,)`.
    """
    exits, macs, bitops = _tables(costs, nodes.device)
    return Routed(
        logits, nodes if exits is None else exits[nodes], macs[nodes], nodes, None if bitops is None else bitops[nodes]
    )


def _route_one(costs: Costs, inputs: Any, steps: Sequence[Step]) -> Routed:
    """Between the steps little may happen: memory caches are full of weights, and what is rarely done is slow."""
    given = inputs
    for exit, step in enumerate(steps):  # noqa: B007
        given, logits, leave = step(given)
        if leave is None or leave.item():
            break
    number, macs, bitops = _results_of_one(costs, logits.device)[exit]
    number = number.clone()
    return Routed(logits, number, macs.clone(), number, None if bitops is None else bitops.clone())


def _route_batch(
    network: Routable, inputs: Any, batch: int, compaction: Compaction, steps: Sequence[Step]
) -> tuple[Tensor, Tensor]:
    stages = network.backbone.num_stages
    given, parts = inputs, list[_Part]()
    rows: Tensor | None = None  # positions in the batch of the samples still there, None for all of them
    left: Tensor | None = None  # which of those have left and ride along, None for none of them
    riding, present = 0, batch
    for exit, step in enumerate(steps):
        given, logits, leave = step(given)
        if leave is None:
            leaving = None if left is None else torch.nonzero_static(~left, size=present - riding).squeeze(1)
            count = present - riding
        else:
            leaving = (leave if left is None else leave & ~left).nonzero().squeeze(1)
            count = len(leaving)
        if count == batch:
            return logits, torch.full((batch,), exit, device=logits.device)
        if not count:
            continue
        gone = leaving if rows is None else rows if leaving is None else rows[leaving]
        assert gone is not None
        parts.append(_Part(gone, gone.new_full(gone.shape, exit), logits if leaving is None else logits[leaving]))
        if leave is None or riding + count == present:
            break
        left, riding = leave if left is None else left | leave, riding + count
        if compaction.pays(riding, present - riding, stages - network.exit_stages[exit] - 1):
            present -= riding
            staying = torch.nonzero_static(~left, size=present).squeeze(1)
            rows, given = staying if rows is None else rows[staying], select(given, staying)
            left, riding = None, 0
    return _in_order(parts)


def _route_tree(
    network: Routable, inputs: Any, batch: int, steps: Sequence[Step], first_node: int
) -> tuple[Tensor, Tensor]:
    place_of = network.tree.place_of
    rows = torch.arange(batch, device=pytree.tree_leaves(inputs)[0].device)
    waiting: dict[int, list[_Group]] = defaultdict(list)  # by place
    waiting[place_of[first_node]].append(_Group(rows, torch.full_like(rows, first_node), inputs))
    parts = list[_Part]()
    for place, step in enumerate(steps):
        if place not in waiting:
            continue
        rows, nodes, given = merge(waiting.pop(place))
        given, logits, after = step(given)
        if after is None or not batch:
            parts.append(_Part(rows, nodes, logits))
            continue
        for node in after.unique().tolist():
            going = (after == node).nonzero().squeeze(1)
            if place_of[node] == place:
                parts.append(_Part(rows[going], after[going], logits[going]))
            else:
                waiting[place_of[node]].append(_Group(*select((rows, after, given), going)))
    return _in_order(parts)


class _Group(NamedTuple):
    """Samples that wait for a step: their positions in the batch, their nodes behind it, what they carry."""

    rows: Tensor
    nodes: Tensor
    carried: Any


def merge(parts: Sequence[_Group]) -> _Group:
    """Put groups together; states of different lengths (texts whose padding was dropped) are padded with zeros again.

    Example:
        >>> row = torch.tensor([0])
        >>> merge([_Group(row, row, torch.ones(1, 2)), _Group(row, row, torch.ones(1, 1))]).carried.tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    return parts[0] if len(parts) == 1 else pytree.tree_map(_join, *parts)


def _join(*tensors: Tensor) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(rows.shape[1:] for rows in tensors), strict=True)]
    padded = []
    for rows in tensors:
        missing = [size - have for size, have in zip(largest, rows.shape[1:], strict=True)]
        padded.append(F.pad(rows, [side for size in reversed(missing) for side in (0, size)]) if any(missing) else rows)
    return torch.cat(padded)


class _Part(NamedTuple):
    """Those that left together: their positions in the batch, their nodes, and their logits."""

    rows: Tensor
    nodes: Tensor
    logits: Tensor


def _in_order(parts: Sequence[_Part]) -> tuple[Tensor, Tensor]:
    """Logits and nodes of all samples, in the order of the batch."""
    order = torch.cat([part.rows for part in parts]).argsort()
    logits = torch.cat([part.logits.to(parts[0].logits.dtype) for part in parts])
    nodes = torch.cat([part.nodes for part in parts])
    return logits.index_select(0, order), nodes.index_select(0, order)


@lru_cache(maxsize=64)
def _tables(costs: Costs, device: torch.device) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """By node: the exit where that is not its number, MACs, and BitOPs where something is quantized."""
    exits, columns = list(costs.node_exits), costs.columns
    return (
        None if exits == list(range(len(exits))) else torch.tensor(exits, device=device),
        torch.tensor(columns["macs"].routed, device=device),
        torch.tensor(columns["bitops"].routed, device=device) if "bitops" in columns else None,
    )


@lru_cache(maxsize=64)
def _results_of_one(costs: Costs, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Exit, MACs and BitOPs of a sample, `(1,)` each, for each exit of a chain."""
    _, macs, bitops = _tables(costs, device)
    numbers = torch.arange(costs.num_exits, device=device)
    none = [None] * costs.num_exits
    return list(zip(numbers.split(1), macs.split(1), none if bitops is None else bitops.split(1), strict=True))
