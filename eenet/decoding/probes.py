"""Controllers of how many layers a token gets: what a hidden state knows of the layers that its token needs."""

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.decoding.oracle import judge
from eenet.errors import UserError

Kind = Literal["linear", "mlp"]


class TokenProbes(nn.Module):
    """For each plan but the last, which is the full model, a score of whether that plan is enough for a token.

    Each plan has a probe of its own, which reads one hidden state, normalised over its dimensions.

    Args:
        dim: Of the hidden states.
        plans: Number of plans, the full model included.
        kind: `linear`, or `mlp` with one hidden layer.
        hidden: Width of that layer.

    Raises:
        UserError: Another kind, or fewer than two plans.

    Example:
        >>> TokenProbes(dim=4, plans=3)(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 2])
    """

    def __init__(self, dim: int, plans: int, kind: Kind = "linear", hidden: int = 64) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UserError("probe", kind, f"must be one of {', '.join(get_args(Kind))}")
        if plans < 2:
            raise UserError("plans", plans, "there must be a plan to choose beside the full model")
        widths = [dim, 1] if kind == "linear" else [dim, hidden, 1]
        self.probes = nn.ModuleList(nn.Sequential(*_layers(widths)) for _ in range(plans - 1))

    def forward(self, states: Tensor) -> Tensor:
        """What the probe of each plan but the last reads, `(tokens, plans, dim)`, to logits `(tokens, plans - 1)`."""
        normed = F.layer_norm(states.float(), states.shape[-1:])
        return torch.cat([probe(normed[:, plan]) for plan, probe in enumerate(self.probes)], dim=1)


def _layers(widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.GELU()]
    return layers[:-1]


def enough(agreement: Tensor, similarity: Tensor, tau: float | None) -> Tensor:
    """Whether each plan is enough for each token; the full model always is.

    Args:
        agreement: Whether the plan's most probable token is the full model's, `(tokens, plans)`.
        similarity: Cosine similarity of its last hidden state to the full model's, `(tokens, plans)`.
        tau: Least similarity that is enough; `None` judges by agreement.

    Returns:
        Bool `(tokens, plans)`, the target of the probes.

    Example:
        >>> enough(torch.tensor([[0, 1, 1]]), torch.tensor([[0.95, 0.5, 1.0]]), tau=0.9)
        tensor([[ True, False,  True]])
    """
    sufficient = agreement.bool() if tau is None else similarity >= tau
    full = torch.zeros(sufficient.shape[1], dtype=torch.bool)
    full[-1] = True
    return sufficient | full.to(sufficient.device)


def first_above(scores: Tensor, threshold: Tensor | float) -> Tensor:
    """The first plan whose score reaches the threshold, otherwise the last.

    Args:
        scores: Of every plan but the last, `(tokens, plans - 1)`.
        threshold: One for all.

    Returns:
        Plan of every token, int64 `(tokens,)`.

    Example:
        >>> first_above(torch.tensor([[0.1, 0.6], [0.2, 0.3]]), 0.5)
        tensor([1, 2])
    """
    reached = F.pad(scores >= threshold, (0, 1), value=True)
    return reached.int().argmax(dim=1)


def controller_curve(scores: Tensor, sufficient: Tensor, costs: Tensor, points: int = 20) -> list[dict[str, float]]:
    """What a controller reaches as its one threshold rises, beside the same allocation dealt out at random.

    Args:
        scores: Higher to stop, `(tokens, plans - 1)`.
        sufficient: From `enough`, `(tokens, plans)`.
        costs: Layers of each plan, `(plans,)`.
        points: Thresholds, at even steps between the extremes of each token's highest score.

    Returns:
        Rows of `judge`: `cost` in layers per token, `score` and `random` as shares of tokens with enough layers.
    """
    best = scores.max(dim=1).values.float()
    levels = torch.quantile(best, torch.linspace(0, 1, points, device=best.device))
    return [judge(first_above(scores, level), sufficient.double(), costs) for level in levels]


def token_oracle_curve(sufficient: Tensor, costs: Tensor) -> list[tuple[float, float]]:
    """The largest share of tokens with enough layers at each mean cost, by an oracle that knows what each needs.

    A token that lacks nothing at the cheapest plan has it; the others take the cheapest plan, or what they need, the
    least needy first, which is exact as each gains the same.

    Args:
        sufficient: From `enough`, `(tokens, plans)`.
        costs: Of each plan, `(plans,)`, increasing.

    Returns:
        Pairs of mean cost and share, increasing, one for every number of tokens served.

    Example:
        >>> token_oracle_curve(torch.tensor([[True, True], [False, True]]), torch.tensor([1, 3]))
        [(1.0, 0.5), (2.0, 1.0)]
    """
    need = costs.double()[sufficient.int().argmax(dim=1)]
    extra = (need[need > costs[0]] - costs[0].double()).sort().values
    total = F.pad(extra.cumsum(0), (1, 0))
    served = len(need) - len(extra) + torch.arange(len(extra) + 1, device=need.device)
    cost = costs[0].double() + total / len(need)
    return list(zip(cost.tolist(), (served.double() / len(need)).tolist(), strict=True))
