"""Weights of samples at exits, learned so that an exit fits those that leave there (L2W-DEN).

Han et al., "Learning to Weight Samples for Dynamic Early-exiting Networks", ECCV 2022.
"""

import torch
from torch import Tensor, nn

from eenet.errors import UserError
from eenet.objectives.losses import cross_entropies


class WeightNetwork(nn.Module):
    """Predicts a sample's weights from its losses: a perceptron with one hidden layer (section 3.2).

    Args:
        exits: Exits whose losses are known.
        weighted: Exits whose samples are weighted.
        hidden: Width of the hidden layer.
        strength: Half the range within which weights differ from 1, up to centring.

    Raises:
        UserError: A width below 1, or a strength outside [0, 1).
    """

    def __init__(self, exits: int, weighted: int, hidden: int = 500, strength: float = 0.3) -> None:
        super().__init__()
        if hidden < 1:
            raise UserError("model.weight_hidden", hidden, "must be at least 1")
        if not 0 <= strength < 1:
            raise UserError("model.weight_strength", strength, "must be in [0, 1)")
        self.strength = strength
        self.layers = nn.Sequential(nn.Linear(exits, hidden), nn.ReLU(), nn.Linear(hidden, weighted))

    def forward(self, losses: Tensor) -> Tensor:
        """Weights `(batch, weighted)` from losses `(batch, exits)`, taken as constants."""
        return centred_weights(self.layers(losses.detach()), self.strength)


def centred_weights(raw: Tensor, strength: float) -> Tensor:
    """Weights `1 + strength * (tanh(raw) - its mean)`; their own mean over samples and exits is 1.

    Args:
        raw: `(batch, exits)`.
        strength: How far from 1 they go.

    Example:
        >>> centred_weights(torch.tensor([[9.0], [-9.0]]), 0.25).flatten().tolist()
        [1.25, 0.75]
    """
    bounded = raw.tanh()
    return 1 + strength * (bounded - bounded.mean())


def geometric_shares(exits: int, ratio: float) -> Tensor:
    """Shares of samples proportional to `ratio^l` at exit `l`, counted from 0, `(exits,)`.

    Example:
        >>> geometric_shares(3, 0.5).mul(7).tolist()
        [4.0, 2.0, 1.0]
    """
    powers = ratio ** torch.arange(exits, dtype=torch.float64)
    return powers / powers.sum()


def assign_exits(confidences: Tensor, shares: Tensor) -> Tensor:
    """Who leaves where, when given shares of a batch leave at each exit and the most confident go first.

    Args:
        confidences: Of every exit, `(batch, exits)`.
        shares: Of each exit, `(exits,)`; numbers of samples are rounded down, and the last exit takes the rest.

    Returns:
        Exit numbers, int64 `(batch,)`.

    Example:
        >>> assign_exits(torch.tensor([[0.6, 0.9], [0.8, 0.7]]), torch.tensor([0.5, 0.5])).tolist()
        [1, 0]
    """
    batch, exits = confidences.shape
    assigned = torch.full((batch,), exits - 1, device=confidences.device)
    here = torch.ones_like(assigned, dtype=torch.bool)
    for exit, count in enumerate((shares[:-1] * batch).long().tolist()):
        leaving = confidences[:, exit].masked_fill(~here, float("-inf")).topk(count).indices
        assigned[leaving] = exit
        here[leaving] = False
    return assigned


def assigned_loss(logits: Tensor, labels: Tensor, exits: Tensor) -> Tensor:
    """The meta loss: the sum over exits of the mean cross-entropy of the samples that leave there.

    Args:
        logits: `(batch, exits, classes)`.
        labels: `(batch,)`.
        exits: Where each sample leaves, `(batch,)`; an exit that nobody takes adds nothing.

    Returns:
        A scalar.
    """
    taken = nn.functional.one_hot(exits, logits.shape[1]).to(logits.dtype)
    return ((cross_entropies(logits, labels) * taken).sum(0) / taken.sum(0).clamp_min(1)).sum()
