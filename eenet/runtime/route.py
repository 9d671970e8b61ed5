"""Routed inference: stages run on the samples that are still there, and stop when nobody is left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones.base import select
from eenet.costs import CostProfile
from eenet.policies.base import Policy
from eenet.runtime.compaction import Compaction
from eenet.runtime.steps import Step, make_steps

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork


class Routed(NamedTuple):
    """What routed inference returns.

    Attributes:
        logits: Of each sample's own exit, `(batch, classes)`.
        exits: Number of the exit at which each sample left, `(batch,)`.
        macs: What each sample cost in MACs, int64 `(batch,)`.
    """

    logits: Tensor
    exits: Tensor
    macs: Tensor


def route(
    network: EarlyExitNetwork,
    inputs: Any,
    policy: Policy,
    compaction: Compaction = Compaction(),  # noqa: B008
    steps: Sequence[Step] | None = None,
) -> Routed:
    """Run only what each sample needs.

    Samples that have left are dropped from the batch where that pays, and when all have left nothing more runs. The
    result equals gathering `network(inputs)` at the decided exits, to float precision. The host waits for the device
    once per exit, to know how many leave.

    Args:
        network: The network, in evaluation mode.
        inputs: A batch as the backbone takes it.
        policy: Decides who leaves.
        compaction: When samples that have left are dropped.
        steps: One per exit, such as compiled ones; made from network and policy when `None`.

    Returns:
        Logits, exits and costs in the order of the inputs.
    """
    if torch.is_grad_enabled():
        with torch.no_grad():
            return route(network, inputs, policy, compaction, steps)
    steps = make_steps(network, policy) if steps is None else steps
    batch = len(inputs if isinstance(inputs, Tensor) else pytree.tree_leaves(inputs)[0])
    if batch == 1:
        return _route_one(network.costs, inputs, steps)
    logits, exits = _route_batch(network, inputs, batch, compaction, steps)
    return Routed(logits, exits, _cumulative(network.costs, exits.device)[exits])


def _route_one(costs: CostProfile, inputs: Any, steps: Sequence[Step]) -> Routed:
    """Between the steps little may happen: memory caches are full of weights, and what is rarely done is slow."""
    given = inputs
    for exit, step in enumerate(steps):  # noqa: B007
        given, logits, leave = step(given)
        if leave is None or leave.item():
            break
    number, macs = _results_of_one(costs, logits.device)[exit]
    return Routed(logits, number.clone(), macs.clone())


def _route_batch(
    network: EarlyExitNetwork, inputs: Any, batch: int, compaction: Compaction, steps: Sequence[Step]
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
        parts.append(_Part(exit, gone, logits if leaving is None else logits[leaving]))
        if leave is None or riding + count == present:
            break
        left, riding = leave if left is None else left | leave, riding + count
        if compaction.pays(riding, present - riding, stages - network.exit_stages[exit] - 1):
            present -= riding
            staying = torch.nonzero_static(~left, size=present).squeeze(1)
            rows, given = staying if rows is None else rows[staying], select(given, staying)
            left, riding = None, 0
    return _in_order(parts)


class _Part(NamedTuple):
    """Those that left at one exit: its number, their positions in the batch, and their logits."""

    exit: int
    rows: Tensor
    logits: Tensor


def _in_order(parts: Sequence[_Part]) -> tuple[Tensor, Tensor]:
    """Logits and exits of all samples, in the order of the batch."""
    order = torch.cat([part.rows for part in parts]).argsort()
    logits = torch.cat([part.logits.to(parts[0].logits.dtype) for part in parts])
    exits = torch.cat([part.rows.new_full(part.rows.shape, part.exit) for part in parts])
    return logits.index_select(0, order), exits.index_select(0, order)


@lru_cache(maxsize=64)
def _cumulative(costs: CostProfile, device: torch.device) -> Tensor:
    return torch.tensor(costs.cumulative, device=device)


@lru_cache(maxsize=64)
def _results_of_one(costs: CostProfile, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Exit and MACs of a sample, both `(1,)`, for each exit."""
    numbers = torch.arange(costs.num_exits, device=device)
    return list(zip(numbers.split(1), _cumulative(costs, device).split(1), strict=True))
