"""Who is timed against whom: the full network, its static exits and the routed network, on the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.policies import Policy, PredictedErrors, Threshold
from eenet.profile import TreeCosts
from eenet.runtime.deployed import EarlyExitRuntime
from eenet.runtime.stopwatch import speed_row, time_rounds
from eenet.tree import FLOAT

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
        costs: Per sample, by unit; `None` where they depend on the samples, then `run` returns a `Routed`, which has
            them.
    """

    name: str
    kind: Kind
    run: Callable[[Any], Any]
    costs: Mapping[str, float] | None = None

    def mean_costs(self, batches: Sequence[Any]) -> dict[str, float]:
        """MACs, and BitOPs where something is quantized, per sample and averaged over batches."""
        if self.costs is not None:
            return dict(self.costs)
        found = [self.run(batch) for batch in batches]
        columns = {unit: [getattr(routed, unit) for routed in found] for unit in ("macs", "bitops")}
        return {
            unit: torch.cat(values).cpu().double().mean().item()
            for unit, values in columns.items()
            if values[0] is not None
        }


class InParts:
    """A function of a batch that runs on parts of it, of a length that was found to be fast.

    Some runtimes answer eight batches of 32 sooner than one of 256.

    Args:
        run: From a batch to a tensor, or to a tuple of tensors, with a row for each sample.
    """

    lengths = (16, 32, 64)
    """That are tried beside the whole batch."""

    def __init__(self, run: Callable[[Any], Any]) -> None:
        self.run = run
        self.length: int | None = None

    def __call__(self, inputs: Any) -> Any:
        """What it gives for the whole batch."""
        rows = len(pytree.tree_leaves(inputs)[0])
        if self.length is None or rows <= self.length:
            return self.run(inputs)
        parts = list(zip(*(tensor.split(self.length) for tensor in pytree.tree_leaves(inputs)), strict=True))
        spec = pytree.tree_structure(inputs)
        found = [self.run(pytree.tree_unflatten(part, spec)) for part in parts]
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        columns = zip(*found, strict=True)
        return type(found[0])(*(None if column[0] is None else torch.cat(column) for column in columns))

    def tune(self, inputs: Any, repeats: int = 3) -> None:
        """Find the length for such batches, by processor time."""
        rows, found = len(pytree.tree_leaves(inputs)[0]), dict[int | None, float]()
        for length in (None, *(length for length in self.lengths if length < rows)):
            self.length, taken = length, []
            for _ in range(repeats):
                start = time.process_time()
                self(inputs)
                taken.append(time.process_time() - start)
            found[length] = min(taken)
        self.length = min(found, key=found.__getitem__)


def full_network(network: EarlyExitNetwork, compile: bool = False) -> Contender:
    """The plain backbone, without any exit; in floating point where the network has several widths."""
    run = _compiled("full_network", network, network.backbone) if compile else network.backbone
    own = network.backbone.stage_bitops is not None  # the backbone itself is quantized
    costs = {unit: column.static[-1] if own else column.full for unit, column in network.costs.columns.items()}
    return Contender("full network", "full", run, costs)


def static_networks(network: EarlyExitNetwork, compile: bool = False) -> list[Contender]:
    """What no policy runs, with no gate and no other head than its own.

    The network cut at each early exit; where its tree branches, all stages at each width but 32 bits.
    """
    tree, columns, contenders = network.tree, network.costs.columns, []
    cut = {f"exit {exit}": exit for exit in range(network.num_exits - 1)}
    if tree.branches:
        widths = [width for width in tree.widths if width != FLOAT]
        cut = {f"{width} bits": tree.index[(width,) * tree.segments] for width in widths}
    for name, node in cut.items():
        static = partial(run_static, network, node)
        run = _compiled(f"static_{node}", network, static) if compile else static
        costs = {unit: column.static[node] for unit, column in columns.items()}
        contenders.append(Contender(name, "static", run, costs))
    return contenders


def routed_network(name: str, network: EarlyExitNetwork, policy: Policy, compile: bool = False) -> Contender:
    """The network routed by a policy; a `UserError` for one of another network, or steps that cannot be compiled."""
    policy = policy.to(next(network.parameters()).device)
    return Contender(f"routed, {name}", "routed", EarlyExitRuntime(network, policy, compile))


def nobody_leaves(network: EarlyExitNetwork, compile: bool = False) -> Contender:
    """The routed network with its gates at work and a policy that lets nobody leave: what routing costs.

    Where its tree branches, everybody goes along the widest path.
    """
    tree, costs = network.tree, network.costs
    policy: Policy = Threshold([float("inf")] * (network.num_exits - 1))
    last = tree.index[tree.full[0]]
    if isinstance(costs, TreeCosts):
        prices = [float(node != last) for node in range(len(tree.nodes))]  # above any difference of errors
        policy = PredictedErrors(tree.full[0][0], 2.0, tree.nodes, prices)
    runtime = EarlyExitRuntime(network, policy.to(next(network.parameters()).device), compile)
    passed = {unit: column.routed[last] for unit, column in costs.columns.items()}
    return Contender("routed, nobody leaves", "overhead", runtime, passed)


def run_static(network: EarlyExitNetwork, node: int, inputs: Any) -> Tensor:
    """Logits of one node, `(batch, classes)`, without what others need; one that is connected needs earlier heads."""
    tree, logits, before = network.tree, None, ()
    path = tree.nodes[node]
    state = network.embed(path[0], inputs)
    for exit, passed in enumerate(tree.along(path)):
        state = network.run_segment(exit, path[exit], state)
        if exit == network.num_exits - 1:
            return network.classify(path[exit], state)
        if passed == node or network.link.connects:
            logits, before = network.logits_at(tree.place_of[passed], network.read(exit, state), before)
    assert logits is not None
    return logits


def _compiled(name: str, network: EarlyExitNetwork, function: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    from eenet.runtime.ahead import compile_function  # imports the compiler

    return compile_function(name, network, function)


def race(
    contenders: Sequence[Contender],
    batches: Sequence[Any],
    batch_size: int,
    rounds: int,
    device: torch.device,
    in_a_row: int = 1,
) -> list[dict[str, Any]]:
    """Time contenders on the same batches, after one round that does not count.

    Args:
        contenders: The full network first; all others are compared with it.
        batches: Inputs on the device.
        batch_size: Samples in each of them.
        rounds: That count.
        device: That everything runs on.
        in_a_row: Batches of a contender's turn; see `time_rounds`.

    Returns:
        For each contender `kind`, the values of `eenet.runtime.speed_row` and, where something is quantized,
        `bitops_speedup`, BitOPs of the full network divided by its own.
    """
    for contender in contenders:
        if isinstance(contender.run, InParts):
            contender.run.tune(batches[0])
    costs = [contender.mean_costs(batches) for contender in contenders]
    runs = {contender.name: contender.run for contender in contenders}
    times = time_rounds(runs, batches, rounds, device, in_a_row=in_a_row)
    full = times[contenders[0].name]
    rows = []
    for one, mean in zip(contenders, costs, strict=True):
        speedups = {unit: costs[0][unit] / value for unit, value in mean.items()}
        row = speed_row(one.name, times[one.name], full, batch_size, speedups.pop("macs"))
        rows.append({"kind": one.kind, **row, **{f"{unit}_speedup": value for unit, value in speedups.items()}})
    return rows


def device_name(device: torch.device) -> str:
    """What runs: a GPU's name, or the instructions that torch uses on the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type
