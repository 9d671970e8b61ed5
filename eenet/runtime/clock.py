"""What the parts of a network take by the clock, and how long routing takes: measured, in turns, on this device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eenet.backbones.base import select
from eenet.errors import UserError
from eenet.policies import Policy
from eenet.profile import Seconds
from eenet.runtime.stopwatch import time_rounds

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork


def medians(
    runs: Mapping[str, Callable[[Any], Any]], batches: Sequence[Any], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of a batch by name: of the processor where that is the device, since others may use it, too."""
    times = time_rounds(runs, batches, rounds, device)
    return {name: float(np.median(found.cpu if device.type == "cpu" else found.wall)) for name, found in times.items()}


@torch.no_grad()
def clock_parts(network: EarlyExitNetwork, policy: Policy, inputs: Any, rounds: int, device_name: str) -> Seconds:
    """Time the parts of a network as torch runs them, on one batch that nobody leaves.

    Args:
        network: In evaluation mode.
        policy: Decides who leaves.
        inputs: A batch on the network's device.
        rounds: That count.
        device_name: What the device is called.

    Raises:
        UserError: The network's tree branches.
    """
    if network.tree.branches:
        raise UserError("profile", "a tree", "is of a chain of exits; a network whose paths branch has BitOPs")
    last = network.num_exits - 1
    device, widths = next(network.parameters()).device, [width for _, width in network.tree.places]
    batch, runs = len(torch.utils._pytree.tree_leaves(inputs)[0]), dict[str, Callable[[Any], Any]]()
    rows = torch.arange(batch, device=device)
    state, before, gate, memory = None, (), (), ()
    for exit in range(last + 1):

        def segment(_: Any, exit: int = exit, state: Any = state) -> Any:
            after = network.run_segment(exit, widths[exit], state if exit else network.embed(widths[0], inputs))
            return network.classify(widths[exit], after) if exit == last else after

        runs[f"segment {exit}"] = segment
        if exit == last:
            break
        state = segment(None)

        def head(_: Any, exit: int = exit, state: Any = state, before: Any = before) -> Any:
            features = network.read(exit, state)
            return network.logits_at(exit, features, before), features

        runs[f"head {exit}"] = head
        (logits, passed), features = head(None)

        def decide(
            _: Any, exit: int = exit, known: Any = (logits, features), gate: Any = gate, memory: Any = memory
        ) -> Any:
            read = network.gate_input(*known)
            scores, gate = network.gate.at(exit, read, gate if exit else network.gate.start(read))
            predictions = known[0].argmax(-1) if policy.reads_predictions else scores
            leave, memory = policy.decide(exit, predictions, scores, memory if exit else policy.start(scores))
            return leave.nonzero() if batch > 1 else leave.item(), gate, memory

        runs[f"gate {exit}"] = decide
        _, gate, memory = decide(None)
        before = passed

        def hand_over(_: Any, state: Any = state) -> Any:
            return select(state, rows)

        if batch > 1:
            runs[f"hand_over {exit}"] = hand_over
    runs["full"] = lambda _: network.backbone(inputs)
    found = medians(runs, [inputs], rounds, device)
    early = range(last)
    return Seconds(
        device_name,
        "torch",
        torch.get_num_threads(),
        batch,
        tuple(found[f"segment {exit}"] for exit in range(last + 1)),
        tuple(found[f"head {exit}"] for exit in early),
        tuple(found[f"gate {exit}"] for exit in early),
        tuple(found.get(f"hand_over {exit}", 0.0) for exit in early),
        found["full"],
    )
