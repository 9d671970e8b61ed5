"""The learned gate of JEI-DNN: a logistic unit on four uncertainty statistics."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.gates.base import Gate, Known, Memory


def uncertainty_statistics(logits: Tensor) -> Tensor:
    """Maximum probability, entropy, margin, and entropy of the renormalised squares, of a softmax.

    JEI-DNN, section 4 (gate inputs).

    Args:
        logits: `(..., classes)`.

    Returns:
        `(..., 4)`; entropies in nats.

    Example:
        >>> uncertainty_statistics(torch.zeros(1, 2)).tolist()  # doctest: +ELLIPSIS
        [[0.5, 0.693..., 0.0, 0.693...]]
    """
    log_p = F.log_softmax(logits, dim=-1)
    p = log_p.exp()
    return torch.cat(figures_of(log_p, p, p.topk(2, dim=-1).values), dim=-1)


def figures_of(log_p: Tensor, p: Tensor, top: Tensor) -> list[Tensor]:
    """The four of `uncertainty_statistics`, `(..., 1)` each.

    Args:
        log_p: Logarithms of the probabilities, `(..., classes)`.
        p: The probabilities.
        top: The two largest, `(..., 2)`.
    """
    first, second = top.split(1, dim=-1)
    surprise = p * log_p
    total = p.square().sum(-1, keepdim=True)
    squared_entropy = total.log() - 2 * (p * surprise).sum(-1, keepdim=True) / total
    return [first, -surprise.sum(-1, keepdim=True), first - second, squared_entropy]


class UncertaintyGate(Gate):
    """Gate logits `w . statistics + b`, one logistic unit per gate, on detached statistics.

    Args:
        num_gates: One per exit but the last.

    Example:
        >>> UncertaintyGate(3)(torch.zeros(2, 3, 10)).shape
        torch.Size([2, 3])
    """

    def __init__(self, num_gates: int) -> None:
        super().__init__(num_gates)
        bound = 1 / math.sqrt(4)
        self.weight = nn.Parameter(torch.empty(num_gates, 4).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_gates).uniform_(-bound, bound))

    def keeping(self, exits: Sequence[int]) -> "UncertaintyGate":
        """A copy of the units of some exits."""
        found = UncertaintyGate(len(exits)).to(self.weight)
        rows = {name: values[list(exits)] for name, values in self.state_dict().items()}
        found.load_state_dict(rows)
        return found.train(self.training).requires_grad_(self.weight.requires_grad)

    def forward(self, logits: Tensor) -> Tensor:
        """Gate logits `(batch, gates)`; no gradient reaches `logits`."""
        statistics = uncertainty_statistics(logits.detach())
        return (statistics * self.weight).sum(-1) + self.bias

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Gate logit of one exit, `(batch,)`."""
        statistics = uncertainty_statistics(logits.detach())
        score = F.linear(statistics, self.weight[exit : exit + 1], self.bias[exit : exit + 1])
        return score.squeeze(-1), memory


def known_at(logits: Tensor, features: Tensor, passed: tuple[Tensor, ...] = ()) -> Known:
    """What is known at an exit, from its logits `(batch, classes)` and what its head reads; a map is averaged.

    Args:
        logits: The exit's.
        features: What its head reads.
        passed: What the exits before said.
    """
    pooled = features.flatten(2).mean(-1) if features.ndim > 2 else features
    return Known(uncertainty_statistics(logits), pooled, logits.log_softmax(-1), passed)
