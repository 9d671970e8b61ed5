"""What an oracle that sees every plan's score would run: for each prompt, and at each average budget."""

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.metrics import choice_shares


def cheapest_sufficient(scores: Tensor, costs: Tensor, full: int) -> Tensor:
    """The cheapest plan of each prompt whose score is at least the full model's.

    Args:
        scores: Higher for better, `(prompts, plans)`.
        costs: Of each plan, `(plans,)`.
        full: Which plan is the full model.

    Returns:
        Plan of every prompt, int64 `(prompts,)`; of equally cheap plans the first.

    Example:
        >>> cheapest_sufficient(torch.tensor([[0.5, 0.1, 0.5], [0.0, 0.1, 0.2]]), torch.tensor([1, 2, 3]), full=2)
        tensor([0, 2])
    """
    enough = scores >= scores[:, full : full + 1]
    return torch.where(enough, costs.double(), torch.inf).argmin(dim=1)


def best_at_budgets(scores: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """The best mean score that choices of one plan for each prompt can have at every mean budget.

    Exact: a knapsack in which each prompt takes one plan, solved by dynamic programming over the total cost.

    Args:
        scores: Higher for better, `(prompts, plans)`.
        costs: Positive whole numbers, such as layers, `(plans,)`.

    Returns:
        Mean costs, increasing from the cheapest plan's to the dearest's, and the best mean score at no more than each,
        both float64 `(budgets,)`.

    Raises:
        UserError: A cost that is not a positive whole number.

    Example:
        >>> budgets, best = best_at_budgets(torch.tensor([[0.0, 1.0], [0.0, 0.5]]), torch.tensor([1, 2]))
        >>> budgets.tolist(), best.tolist()
        ([1.0, 1.5, 2.0], [0.0, 0.5, 0.75])
    """
    low, best, _ = _knapsack(scores, costs)
    budgets = low + torch.arange(len(best), dtype=torch.float64) / len(scores)
    return budgets, best / len(scores)


def cheapest_on_average(scores: Tensor, costs: Tensor, full: int) -> Tensor:
    """The plan of each prompt in the cheapest choice whose mean score is at least the full model's mean.

    One prompt's loss is made up by another's gain: how arXiv 2410.20022 compares plans with the full model.

    Args:
        scores: Higher for better, `(prompts, plans)`.
        costs: Positive whole numbers, such as layers, `(plans,)`.
        full: Which plan is the full model.

    Returns:
        Plan of every prompt, int64 `(prompts,)`; a mean that is less by 1e-6, as rounding of float32 makes it, will do.

    Example:
        >>> cheapest_on_average(torch.tensor([[0.5, 0.1, 0.5], [0.1, 0.5, 0.4]]), torch.tensor([1, 2, 3]), full=2)
        tensor([0, 1])
    """
    low, best, picks = _knapsack(scores, costs)
    wanted = scores[:, full].double().sum()
    left = int((best >= wanted - 1e-6 * len(scores)).int().argmax())
    chosen = []
    for pick in reversed(picks):
        chosen.append(int(pick[left]))
        left -= int(costs[chosen[-1]]) - low
    return torch.tensor(chosen[::-1])


def _knapsack(scores: Tensor, costs: Tensor) -> tuple[int, Tensor, list[Tensor]]:
    """The least cost, the best total at every total of what costs more, and each prompt's plan there."""
    if costs.is_floating_point() or int(costs.min()) < 1:
        raise UserError("costs", costs.tolist(), "must be positive whole numbers, such as layers")
    low, high = int(costs.min()), int(costs.max())
    best, picks = torch.zeros(len(scores) * (high - low) + 1, dtype=torch.float64), []
    for row in scores.double():
        options = []
        for score, extra in zip(row, (costs - low).tolist(), strict=True):
            options.append(torch.cat([best.new_full((extra,), -torch.inf), best[: len(best) - extra]]) + score)
        best, pick = torch.stack(options).max(dim=0)
        picks.append(pick.to(torch.int16))
    return low, best, picks


def traded(scores: Tensor, costs: Tensor, tradeoff: float) -> Tensor:
    """The plan of each prompt with the largest score minus `tradeoff` times cost.

    Args:
        scores: True or predicted, `(prompts, plans)`.
        costs: Of each plan, `(plans,)`.
        tradeoff: Score that one unit of cost is worth.

    Example:
        >>> traded(torch.tensor([[0.0, 0.3], [0.0, 0.1]]), torch.tensor([1, 2]), 0.2)
        tensor([1, 0])
    """
    return (scores.double() - tradeoff * costs.double()).argmax(dim=1)


def judge(choice: Tensor, scores: Tensor, costs: Tensor) -> dict[str, float]:
    """Mean cost and score of a choice, and what the same choices dealt out at random would score.

    Args:
        choice: Plan of each prompt, or token, `(n,)`.
        scores: `(n, plans)`.
        costs: Of each plan, `(plans,)`.

    Returns:
        `cost`, `score`, and `random`: the expected mean score over all shuffles of `choice`, which is exact.

    Example:
        >>> judge(torch.tensor([0, 1]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 3]))
        {'cost': 2.0, 'score': 1.0, 'random': 0.75}
    """
    shares = choice_shares(choice, scores.shape[1])
    return {
        "cost": (shares @ costs.double()).item(),
        "score": scores.double().gather(1, choice[:, None]).mean().item(),
        "random": (shares @ scores.double().mean(dim=0)).item(),
    }
