"""Routed inference: stages run on the samples that are still there, and stop when nobody is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones.base import select
from eenet.policies.base import Policy

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


@torch.no_grad()
def route(network: EarlyExitNetwork, inputs: Any, policy: Policy) -> Routed:
    """Run only what each sample needs.

    After each exit the samples that leave are dropped from the batch, so later stages run on fewer rows; when none is
    left nothing more runs. The result equals gathering `network(inputs)` at the decided exits, to float precision.
    One device synchronisation per exit tells who is left, a second one follows where somebody leaves.

    Args:
        network: The network, in evaluation mode.
        inputs: A batch as the backbone takes it.
        policy: Decides who leaves.

    Returns:
        Logits, exits and costs in the order of the inputs.
    """
    backbone = network.backbone
    state = backbone.embed(inputs)
    first = pytree.tree_leaves(state)[0]
    batch = len(first)
    logits = None
    exits = torch.full((batch,), network.num_exits - 1, device=first.device)
    rows = torch.arange(batch, device=first.device)  # positions in the batch of the samples still there
    gate_memory = memory = None
    before: Any = ()
    for stage in range(backbone.num_stages):
        state = backbone.run_stage(stage, state)
        if stage not in network.exit_stages:
            continue
        exit = network.exit_stages.index(stage)
        exit_logits = network.logits_at(exit, state, before)
        before = exit_logits if network.boosted else ()
        if logits is None:
            logits = exit_logits.new_empty(batch, exit_logits.shape[1])
            gate_memory = network.gate.start(exit_logits)
        scores, gate_memory = network.gate.at(exit, exit_logits, gate_memory)
        if memory is None:
            memory = policy.start(scores)
        leave, memory = policy.decide(exit, exit_logits.argmax(-1), scores, memory)
        leaving = leave.nonzero().squeeze(1)
        if not len(leaving):
            continue
        logits[rows[leaving]] = exit_logits[leaving]
        exits[rows[leaving]] = exit
        staying = (~leave).nonzero().squeeze(1)
        if not len(staying):
            break
        rows, state, before, gate_memory, memory = select((rows, state, before, gate_memory, memory), staying)
    else:
        final = backbone.classify(state)
        if logits is None:
            logits = final
        else:
            logits[rows] = final.to(logits.dtype)
    macs = torch.tensor(network.costs.cumulative, device=exits.device)[exits]
    return Routed(logits, exits, macs)
