"""The steps of a routed network: what runs between one decision and the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones.base import StagedBackbone, State
from eenet.gates import Gate, Memory
from eenet.policies.base import Policy
from eenet.profile import Costs
from eenet.tree import Tree


class Routable(Protocol):
    """What the router asks of a network; see `eenet.network.EarlyExitNetwork`."""

    backbone: StagedBackbone
    gate: Gate
    tree: Tree
    exit_stages: list[int]

    @property
    def num_exits(self) -> int:
        """Early exits and the last one."""

    @property
    def costs(self) -> Costs:
        """Of every node."""

    def embed(self, width: int, inputs: Any) -> State:
        """What comes before the first segment."""

    def classify(self, width: int, state: State) -> Tensor:
        """The backbone's own head."""

    def run_segment(self, segment: int, width: int, state: State) -> State:
        """Run the stages between two exits."""

    def read(self, exit: int, state: State) -> Tensor:
        """What the head of an early exit reads."""

    def logits_at(self, place: int, features: Tensor, before: Any) -> tuple[Tensor, Any]:
        """Logits of an early exit, and what the later ones need of it."""

    def gate_input(self, logits: Tensor, features: Tensor, before: Any = ()) -> Any:
        """What the gate reads there."""

    def remember(self, before: Any, passed: Any, read: Any) -> Any:
        """What later exits need of this one."""


class Carried(NamedTuple):
    """What the steps of a network hand on: pytrees of tensors whose first axis is the batch.

    Attributes:
        state: Of the backbone.
        before: What later heads and gates need of the exits passed, from `remember`.
        gate: The gate's memory; where the tree branches, the node of each sample.
        policy: The policy's memory.
    """

    state: State
    before: Any
    gate: Memory
    policy: Memory


Result = tuple[Any, Tensor, Tensor | None]
"""What a step returns: what it hands on; the exit's logits, `(batch, classes)`; who leaves, bool `(batch,)`.

Where a tree branches the last is the next node of each sample, int64 `(batch,)`: its own for one that leaves. At the
last exit everybody leaves, and it is `None`.
"""

Step = Callable[[Any], Result]
"""Runs the stages up to an exit, its head, its gate and the decision.

A first one takes the inputs, the others what the one before handed on, a pytree of tensors whose first axis is the
batch.
"""


def make_steps(network: Routable, policy: Policy) -> list[Step]:
    """One step per place of the tree: in a chain, one per exit, the last included."""
    return [partial(run_step, network, policy, place) for place in range(len(network.tree.places))]


def place_steps(tree: Tree, found: Mapping[int, Step]) -> list[Step]:
    """One step per place, from those of the places that a policy reaches."""
    return [found.get(place, _nobody) for place in range(len(tree.places))]


def _nobody(given: Any) -> Result:
    raise AssertionError("the policy sends nobody here")


def walk(tree: Tree, first_node: int, steps: Sequence[Step], inputs: Any) -> Iterator[tuple[int, Any, Result]]:
    """Run each step that can be reached once, on all samples, whoever leaves.

    Where the tree branches, the samples are dealt out over the nodes of a place: gate and policy, whose memories are
    what a step hands on last, remember the node of each.

    Args:
        tree: The network's.
        first_node: Where the policy sends everybody.
        steps: One per place.
        inputs: A batch.

    Returns:
        For each place its number, what its step was given and what it returned.
    """
    places = tree.places_behind(first_node)
    waiting = {tree.place_of[first_node]: inputs}
    for place, nodes in places.items():
        given = waiting.pop(place)
        result = steps[place](given)
        for after in (tree.place_of[child] for node in nodes for child in tree.children(node)):
            if after not in waiting:
                waiting[after] = _dealt(result[0], places[after]) if tree.branches else result[0]
        yield place, given, result


def _dealt(handed_on: Any, nodes: Sequence[int]) -> Any:
    leaves, spec = pytree.tree_flatten(handed_on)
    rows = torch.arange(len(leaves[-1]), device=leaves[-1].device) % len(nodes)
    dealt = torch.tensor(nodes, device=rows.device)[rows]
    return pytree.tree_unflatten([*leaves[:-2], dealt, dealt], spec)


def split_results(results: Sequence[Tensor], last: bool) -> Result:
    """What a step returns, from its flat tensors: those handed on, the logits and, but for the last, who leaves."""
    if last:
        return (), results[-1], None
    *handed_on, logits, leave = results
    return handed_on, logits, leave


def run_step(network: Routable, policy: Policy, place: int, given: Any) -> Result:
    """Run the segment before an exit, then decide there; the first one embeds the inputs too.

    Args:
        network: In evaluation mode.
        policy: Decides who leaves.
        place: Number of the place that the step ends at.
        given: What the step before handed on; the inputs for a first one.
    """
    exit, width = network.tree.places[place]
    state, before, gate, memory = given if exit else (network.embed(width, given), (), (), ())
    state = network.run_segment(exit, width, state)
    if exit == network.num_exits - 1:
        return (), network.classify(width, state), None
    features = network.read(exit, state)
    logits, passed = network.logits_at(place, features, before)
    read = network.gate_input(logits, features, before)
    scores, gate = network.gate.at(place, read, gate if exit else network.gate.start(read))
    predictions = logits.argmax(-1) if policy.reads_predictions else scores
    leave, memory = policy.decide(place, predictions, scores, memory if exit else policy.start(scores))
    return (
        Carried(state, network.remember(before, passed, read), leave if network.tree.branches else gate, memory),
        network.gate.answer(logits, gate),
        leave,
    )
