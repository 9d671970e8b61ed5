"""Thresholds at which the shares of samples that leave form a geometric series (MSDNet; JEI-DNN's own baseline)."""

import torch
from torch import Tensor

from eenet.calibration.search import Scored, check_budget
from eenet.errors import UnmetError
from eenet.policies import Policy, Threshold

RATIOS: list[float] = torch.logspace(-2, 2, 401, dtype=torch.float64).tolist()
"""Ratios of the shares of two exits in a row that are compared."""


def geometric_shares(ratio: float, exits: int) -> Tensor:
    """Shares of the samples that leave at each exit, each so many times that of the exit before, float64 `(exits,)`.

    Example:
        >>> geometric_shares(0.5, 3).tolist()  # doctest: +ELLIPSIS
        [0.571..., 0.285..., 0.142...]
    """
    shares = ratio ** torch.arange(exits, dtype=torch.float64)
    return shares / shares.sum()


def thresholds_for_shares(scores: Tensor, shares: Tensor) -> Threshold:
    """The threshold of each exit at which it keeps its share, exit by exit, of the samples that arrive there.

    Args:
        scores: Gate scores, `(samples, exits - 1)`.
        shares: Of all samples, that leave at each exit, `(exits,)`.

    Returns:
        Thresholds; infinite where nobody is to leave. Ties leave together.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.7, 0.5], [0.6, 0.7]])
        >>> thresholds_for_shares(scores, torch.tensor([0.25, 0.5, 0.25])).thresholds.tolist()  # doctest: +ELLIPSIS
        [0.899..., 0.699...]
    """
    there, thresholds = torch.ones(len(scores), dtype=torch.bool, device=scores.device), []
    for exit, share in enumerate(shares[:-1].tolist()):
        arrived = scores[there, exit].sort(descending=True).values
        count = min(round(share * len(scores)), len(arrived))
        thresholds.append(arrived[count - 1].item() if count else float("inf"))
        there &= scores[:, exit] < thresholds[-1]
    return Threshold(thresholds)


def fit_geometric(scored: Scored, budget: float, field: str = "budget") -> Policy:
    """The thresholds of geometric shares that spend a budget.

    The shares follow one ratio, as in MSDNet's budgeted classification (Huang et al., ICLR 2018) and the baseline of
    JEI-DNN; no label has a part in it.

    Args:
        scored: The validation split.
        budget: Mean fraction of the full network's cost allowed.
        field: What asks for it, for errors.

    Raises:
        UserError: The budget is outside (0, 1].
        UnmetError: Even the smallest ratio costs more.
    """
    check_budget(budget, field)
    exits = len(scored.fractions)
    for ratio in reversed(RATIOS):
        policy = thresholds_for_shares(scored.scores, geometric_shares(ratio, exits))
        if scored.cost(policy) <= budget:
            return policy
    raise UnmetError(field, budget, f"cannot be met: geometric shares cost at least {scored.cost(policy):.3f}")
