"""EENet's budget scheduler, learned on validation data (Ilhan, Chow, Hu, Tekin, Liu, WACV 2024)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.calibration.search import Scored, check_budget, policy_for_budget
from eenet.gates import SchedulerGate
from eenet.policies import Policy, Threshold


def fit_scheduler(logits: Tensor, labels: Tensor, steps: int = 300, learning_rate: float = 0.01) -> SchedulerGate:
    """Fit the scoring functions to whether each exit is right, by Adam on the whole split.

    Args:
        logits: Of all exits, `(samples, exits, classes)`.
        labels: `(samples,)`.
        steps: Gradient steps.
        learning_rate: Of Adam.

    Returns:
        The gate; the same data give the same weights.
    """
    early = logits[:, :-1].float()
    correct = (early.argmax(-1) == labels.unsqueeze(1)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = SchedulerGate(early.shape[1], early.shape[2])
    optimizer = torch.optim.Adam(gate.parameters(), learning_rate, weight_decay=1e-4)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(gate(early), correct).backward()
            optimizer.step()
    return gate.eval().requires_grad_(False)


def fit_schedule(
    scored: Scored, budget: float, steps: int = 300, learning_rate: float = 0.05, price: float = 10.0
) -> Policy:
    """Fit a threshold per exit: the most right answers at a mean cost within the budget.

    A sample leaves softly, with probability `sigmoid((score - threshold) / width)` where it arrives, and the thresholds
    climb the expected accuracy less a priced excess over the budget [inferred: EENet learns assignments by a budget
    loss]. They are then raised or lowered together to the most accurate setting within it.

    Args:
        scored: The validation split, its scores being the scheduler's.
        budget: Mean fraction of the full network's MACs allowed.
        steps: Gradient steps of Adam.
        learning_rate: Of Adam, in units of the scores' spread.
        price: Of the relative excess over the budget, in units of accuracy.

    Raises:
        UserError: The budget is outside (0, 1] or cannot be met.
    """
    check_budget(budget)
    scores, correct = scored.scores.float(), scored.correct.float()
    spread = scores.std().clamp_min(1e-6)
    costs = scored.fractions.float()
    shared = policy_for_budget(Threshold([0.0] * scores.shape[1]), scored, budget)
    thresholds = shared.thresholds.clamp(scores.min(), scores.max()).requires_grad_()  # type: ignore[operator]
    optimizer = torch.optim.Adam([thresholds], learning_rate * spread.item())
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            leave = ((scores - thresholds) / (0.1 * spread)).sigmoid()
            reach = torch.cat([torch.ones_like(leave[:, :1]), (1 - leave).cumprod(1)], dim=1)
            shares = reach * torch.cat([leave, torch.ones_like(leave[:, :1])], dim=1)
            excess = ((shares * costs).sum(1).mean() / budget - 1).clamp_min(0)
            (price * excess - (shares * correct).sum(1).mean()).backward()
            optimizer.step()
    return policy_for_budget(Threshold(thresholds.detach().tolist()), scored, budget)
