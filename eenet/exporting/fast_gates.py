"""The gates of a network as an ONNX file computes them: the same decisions from fewer operations.

In a graph each operation on one row of ten logits takes about as long, whatever it computes: a gate costs their number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.gates import ConfidenceGate, Gate, UncertaintyGate
from eenet.gates.base import Memory
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, Threshold


class LogProbability(Gate):
    """Scores an exit by the logarithm of its highest probability: a maximum minus a log-sum-exp.

    Example:
        >>> LogProbability(1).at(0, torch.zeros(1, 2))[0].exp().tolist()
        [0.5]
    """

    def forward(self, logits: Tensor) -> Tensor:
        """The logarithms, `(batch, gates)`."""
        return logits.amax(-1) - logits.logsumexp(-1)

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """The logarithm at one exit, `(batch,)`."""
        return self(logits), memory


class FewStatistics(UncertaintyGate):
    """JEI-DNN's gate: its four statistics from sums of exponentials, without a logarithm for every class.

    With `d` the logits minus their maximum and `e = exp(d)`, the entropy is `log(sum e) - sum(e d) / sum(e)`, and that
    of the renormalised squares the same of `2 d`.

    Args:
        gate: Whose weights it shares.

    Example:
        >>> gate, logits = UncertaintyGate(1), torch.randn(4, 10)
        >>> torch.allclose(FewStatistics(gate).at(0, logits)[0], gate.at(0, logits)[0], atol=1e-6)
        True
    """

    def __init__(self, gate: UncertaintyGate) -> None:
        Gate.__init__(self, gate.num_gates)  # draws no weights
        self.weight, self.bias = gate.weight, gate.bias

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Gate logit of one exit, `(batch,)`."""
        top = logits.topk(2, dim=-1).values
        best = top[:, :1]
        below = logits - best
        powers = below.exp()
        squares = powers * powers
        total, total_squares = powers.sum(-1, keepdim=True), squares.sum(-1, keepdim=True)
        entropy = total.log() - (powers * below).sum(-1, keepdim=True) / total
        squared_entropy = total_squares.log() - 2 * (squares * below).sum(-1, keepdim=True) / total_squares
        margin = (1 - (top[:, 1:] - best).exp()) / total
        statistics = torch.cat([1 / total, entropy, margin, squared_entropy], dim=-1)
        return F.linear(statistics, self.weight[exit : exit + 1], self.bias[exit : exit + 1]).squeeze(-1), memory


def with_fast_gates(network: EarlyExitNetwork, policy: Policy) -> tuple[EarlyExitNetwork, Policy]:
    """A network and a policy that decide as the given ones do, from fewer operations where such are known."""
    gate = network.gate
    if type(gate) is ConfidenceGate and gate.measure == "max_probability" and type(policy) is Threshold:
        limits = [math.log(limit) if limit > 0 else -math.inf for limit in policy.thresholds.tolist()]
        return network.with_gate(LogProbability(gate.num_gates)), Threshold(limits)
    if type(gate) is UncertaintyGate:
        return network.with_gate(FewStatistics(gate)), policy
    return network, policy
