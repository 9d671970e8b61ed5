"""Who is timed against whom: the full network, its static exits and the routed network, on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from eenet.policies import Policy, Threshold
from eenet.runtime.deployed import EarlyExitRuntime
from eenet.runtime.stopwatch import speed_row, time_rounds

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork

Kind = Literal["full", "static", "routed", "overhead"]


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        name: In tables.
        kind: `overhead` is the routed network that nobody leaves early.
        run: Takes a batch of inputs.
        macs: Per sample; `None` where it depends on the samples, then `run` returns a `Routed`, which says it.
    """

    name: str
    kind: Kind
    run: Callable[[Any], Any]
    macs: float | None = None

    def mean_macs(self, batches: Sequence[Any]) -> float:
        """MACs per sample, averaged over batches."""
        if self.macs is not None:
            return self.macs
        return torch.cat([self.run(batch).macs for batch in batches]).double().mean().item()


def full_network(network: EarlyExitNetwork, compile: bool = False) -> Contender:
    """The plain backbone, without any exit."""
    run = _compiled("full_network", network, network.backbone) if compile else network.backbone
    return Contender("full network", "full", run, network.costs.full)


def static_networks(network: EarlyExitNetwork, compile: bool = False) -> list[Contender]:
    """The network cut at each early exit: the stages up to it and its own head, no other head and no gate."""
    contenders = []
    for exit in range(network.num_exits - 1):
        static = partial(run_static, network, exit)
        run = _compiled(f"static_{exit}", network, static) if compile else static
        contenders.append(Contender(f"exit {exit}", "static", run, network.costs.static[exit]))
    return contenders


def routed_network(name: str, network: EarlyExitNetwork, policy: Policy, compile: bool = False) -> Contender:
    """The network routed by a policy.

    Raises:
        UserError: The policy is made for another number of exits, or the steps cannot be compiled.
    """
    policy = policy.to(next(network.parameters()).device)
    return Contender(f"routed, {name}", "routed", EarlyExitRuntime(network, policy, compile))


def nobody_leaves(network: EarlyExitNetwork, compile: bool = False) -> Contender:
    """The routed network with its gates at work and thresholds that no score reaches: what routing costs."""
    never = Threshold([float("inf")] * (network.num_exits - 1))
    runtime = EarlyExitRuntime(network, never, compile)
    return Contender("routed, nobody leaves", "overhead", runtime, network.costs.cumulative[-1])


def run_static(network: EarlyExitNetwork, exit: int, inputs: Any) -> Tensor:
    """Logits of one early exit, `(batch, classes)`, without what others need; a boosted one needs earlier heads."""
    backbone, logits = network.backbone, None
    state = backbone.embed(inputs)
    for stage in range(network.exit_stages[exit] + 1):
        state = backbone.run_stage(stage, state)
        if stage == network.exit_stages[exit] or (network.boosted and stage in network.exit_stages):
            logits = network.logits_at(network.exit_stages.index(stage), state, logits)
    assert logits is not None
    return logits


def _compiled(name: str, network: EarlyExitNetwork, function: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    from eenet.runtime.ahead import compile_function  # imports the compiler

    return compile_function(name, network, function)


def race(
    contenders: Sequence[Contender], batches: Sequence[Any], batch_size: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Time contenders on the same batches, after one round that does not count.

    Args:
        contenders: The full network first; all others are compared with it.
        batches: Inputs on the device.
        batch_size: Samples in each of them.
        rounds: That count.
        device: That everything runs on.

    Returns:
        For each contender `kind` and the values of `eenet.runtime.speed_row`.
    """
    macs = [contender.mean_macs(batches) for contender in contenders]
    times = time_rounds({contender.name: contender.run for contender in contenders}, batches, rounds, device)
    full = times[contenders[0].name]
    return [
        {"kind": one.kind, **speed_row(one.name, times[one.name], full, batch_size, macs[0] / mean)}
        for one, mean in zip(contenders, macs, strict=True)
    ]
