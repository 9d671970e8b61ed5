"""The steps of a routed network: what runs between one decision and the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from eenet.backbones.base import State
from eenet.gates import Memory
from eenet.policies.base import Policy

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork


class Carried(NamedTuple):
    """What the steps of a network hand on: pytrees of tensors whose first axis is the batch.

    Attributes:
        state: Of the backbone.
        before: Logits of the exit before, in a boosted network.
        gate: The gate's memory.
        policy: The policy's memory.
    """

    state: State
    before: Any
    gate: Memory
    policy: Memory


Result = tuple[Any, Tensor, Tensor | None]
"""What a step returns: what it hands on; the exit's logits, `(batch, classes)`; who leaves, bool `(batch,)`.

At the last exit everybody leaves, and it is `None`.
"""

Step = Callable[[Any], Result]
"""Runs the stages up to an exit, its head, its gate and the decision.

The first takes the inputs, the others what the one before handed on, a pytree of tensors whose first axis is the batch.
"""


def make_steps(network: EarlyExitNetwork, policy: Policy) -> list[Step]:
    """One step per exit, the last included."""
    return [partial(run_step, network, policy, exit) for exit in range(network.num_exits)]


def split_results(results: Sequence[Tensor], last: bool) -> Result:
    """What a step returns, from its flat tensors: those handed on, the logits and, but for the last, who leaves."""
    if last:
        return (), results[-1], None
    *handed_on, logits, leave = results
    return handed_on, logits, leave


def run_step(network: EarlyExitNetwork, policy: Policy, exit: int, given: Any) -> Result:
    """Run the stages after the exit before, then decide at this one; the first step embeds the inputs too.

    Args:
        network: In evaluation mode.
        policy: Decides who leaves.
        exit: Number of the exit that the step ends with.
        given: What the step before handed on; the inputs for the first.
    """
    backbone, last = network.backbone, exit == network.num_exits - 1
    state, before, gate, memory = given if exit else (backbone.embed(given), (), (), ())
    begin = network.exit_stages[exit - 1] + 1 if exit else 0
    for stage in range(begin, backbone.num_stages if last else network.exit_stages[exit] + 1):
        state = backbone.run_stage(stage, state)
    if last:
        return (), backbone.classify(state), None
    logits = network.logits_at(exit, state, before)
    scores, gate = network.gate.at(exit, logits, gate if exit else network.gate.start(logits))
    predictions = logits.argmax(-1) if policy.reads_predictions else scores
    leave, memory = policy.decide(exit, predictions, scores, memory if exit else policy.start(scores))
    return Carried(state, logits if network.boosted else (), gate, memory), logits, leave
