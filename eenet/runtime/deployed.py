"""A routed network to deploy: network, policy and how they are run, in one module."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from eenet.policies.base import Policy
from eenet.routing.compaction import Compaction
from eenet.routing.route import Routed, route
from eenet.routing.steps import make_steps, walk

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork


class EarlyExitRuntime(nn.Module):
    """Routes batches of any size. It runs under the caller's autocast and on the caller's CUDA stream.

    Args:
        network: The network; put in evaluation mode.
        policy: Decides who leaves.
        compile: Compile each step, that is the stages up to an exit with its head, gate and decision, into machine code
            for any batch, now; it keeps the autocast and the number of threads of this moment.
        compaction: When samples that have left are dropped.

    Raises:
        UserError: The policy is made for another number of exits or other paths, or the steps cannot be compiled.

    Attributes:
        steps: One per place of the network's tree.
        first_node: Where the policy sends every sample.
    """

    def __init__(
        self,
        network: EarlyExitNetwork,
        policy: Policy,
        compile: bool = False,
        compaction: Compaction = Compaction(),  # noqa: B008
    ) -> None:
        super().__init__()
        network.check(policy)
        self.network, self.policy, self.compaction = network.eval(), policy, compaction
        self.first_node = policy.first_node
        if compile:
            from eenet.runtime.ahead import compile_steps  # imports the compiler

            self.steps = compile_steps(network, policy)
        else:
            self.steps = make_steps(network, policy)
        _ = network.costs

    def forward(self, inputs: Any) -> Routed:
        """Logits, exits and costs of a batch, in its order; see `eenet.routing.route`."""
        return route(self.network, inputs, self.policy, self.compaction, self.steps)

    @torch.no_grad()
    def warm_up(self, inputs: Any, batch_sizes: Sequence[int] = (1, 2)) -> float:
        """Run every step, whoever leaves, on the first samples of a batch, before anything is timed or served.

        Args:
            inputs: A batch, at least as large as the largest of the sizes.
            batch_sizes: What will be asked for.

        Returns:
            Seconds it took.
        """
        start = time.perf_counter()
        for size in batch_sizes:
            given = pytree.tree_map(lambda rows, size=size: rows[:size], inputs)
            for _ in walk(self.network.tree, self.first_node, self.steps, given):
                pass
        return time.perf_counter() - start
