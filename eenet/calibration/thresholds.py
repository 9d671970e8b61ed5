"""One confidence threshold for a cost budget, chosen on validation scores."""

import torch
from torch import Tensor

from eenet.errors import UserError


def check_budget(budget: float, field: str = "budgets") -> float:
    """A budget is a fraction of the full network's MACs.

    Raises:
        UserError: It is outside (0, 1].
    """
    if not 0 < budget <= 1:
        raise UserError(field, budget, "a budget is a fraction of the full network's MACs, in (0, 1]")
    return budget


def mean_threshold_cost(scores: Tensor, costs: Tensor, threshold: Tensor | float) -> Tensor:
    """Mean cost when every sample leaves at the first exit whose score is at least the threshold.

    Args:
        scores: `(samples, exits - 1)`.
        costs: Cost of leaving at each exit, `(exits,)`.
        threshold: One for all exits.

    Returns:
        A scalar in the unit of the costs.
    """
    leave = scores >= threshold
    last = torch.full((len(scores),), len(costs) - 1)
    return costs[torch.where(leave.any(1), leave.int().argmax(1), last)].mean()


def threshold_for_budget(scores: Tensor, costs: Tensor, budget: float) -> float:
    """The highest shared threshold whose mean cost keeps a budget.

    The mean cost never falls as the threshold rises, so the observed scores, sorted, are searched by bisection.

    Args:
        scores: Gate scores of the validation samples, higher to leave, `(samples, exits - 1)`.
        costs: Fraction of the full network's MACs spent at each exit, `(exits,)`.
        budget: Mean fraction allowed.

    Returns:
        A threshold for all exits; `inf` if even running everything keeps the budget.

    Raises:
        UserError: Leaving everybody at the first exit costs more than the budget.

    Example:
        >>> scores = torch.tensor([[0.9], [0.4], [0.6], [0.2]])
        >>> round(threshold_for_budget(scores, torch.tensor([0.5, 1.0]), 0.75), 3)
        0.6
    """
    check_budget(budget)
    if mean_threshold_cost(scores, costs, float("inf")) <= budget:
        return float("inf")
    if mean_threshold_cost(scores, costs, float("-inf")) > budget:
        raise UserError("budgets", budget, f"the first exit alone costs {costs[0]:.3f} of the full network's MACs")
    candidates = scores.flatten().unique()
    low, high = 0, len(candidates)  # candidates[low] keeps the budget, candidates[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if mean_threshold_cost(scores, costs, candidates[middle]) <= budget:
            low = middle
        else:
            high = middle
    return candidates[low].item()
