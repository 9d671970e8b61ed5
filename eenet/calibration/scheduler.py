"""EENet's budget scheduler, learned on validation data (Ilhan, Chow, Hu, Tekin, Liu, WACV 2024)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.calibration.logits import Logits, blocks, spread
from eenet.calibration.search import Scored, check_budget, policy_for_budget
from eenet.gates import SchedulerGate
from eenet.policies import Policy, Threshold

FIT_BYTES = 2**28
"""Bytes of what the scoring functions read, above which they are fitted to some of the samples."""

STEP_BYTES = 2**23
"""Bytes of it that a step reads: nearly all time goes into products with it, so this bounds the time of a fit."""


def fit_scheduler(logits: Logits, labels: Tensor, steps: int = 300, learning_rate: float = 0.01) -> SchedulerGate:
    """Fit the scoring functions to whether each exit is right, by Adam.

    What they read of an exit's own logits never changes and is computed once; where it takes more than `FIT_BYTES`,
    samples spread evenly over the split stand for it. Steps are on all of it, or in turn on equal random parts of at
    most `STEP_BYTES`.

    Args:
        logits: Of all exits, `(samples, exits, classes)`.
        labels: `(samples,)`.
        steps: Gradient steps.
        learning_rate: Of Adam.

    Returns:
        The gate; the same data give the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = SchedulerGate(logits.shape[1] - 1, logits.shape[2])
        known, right = _read(gate, logits, labels)
    parts = math.ceil(known.nbytes / STEP_BYTES)
    batches = list(zip(known.tensor_split(parts, dim=2), right.tensor_split(parts), strict=True))
    optimizer = torch.optim.Adam(gate.parameters(), learning_rate, weight_decay=1e-4, fused=True)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.zero_grad()
            features, correct = batches[step % parts]
            scores, earlier = [], correct[:, :0]
            for exit, own in enumerate(features):
                scores.append(_score(gate.scorers[exit], own.T, earlier))
                earlier = torch.cat([earlier, scores[exit].sigmoid().unsqueeze(1)], dim=1)
            F.binary_cross_entropy_with_logits(torch.stack(scores, dim=1), correct).backward()
            optimizer.step()
    return gate.eval().requires_grad_(False)


def _score(scorer: Any, own: Tensor, earlier: Tensor) -> Tensor:
    """`scorer(torch.cat([own, earlier], dim=1))`, `(samples,)`, without a copy of the large part."""
    first, *rest = scorer
    large, small = first.weight.split([own.shape[1], earlier.shape[1]], dim=1)
    hidden = F.linear(own, large) + F.linear(earlier, small, first.bias)
    for layer in rest:
        hidden = layer(hidden)
    return hidden.squeeze(-1)


def _read(gate: SchedulerGate, logits: Logits, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What each exit's function reads of its own logits, `(exits - 1, classes + 3, samples)`, and whether it is right.

    Samples come last: products with few columns are faster so. Their order is drawn, since a split may be in the order
    of its classes.
    """
    width = gate.num_classes + 3
    most = max(1, FIT_BYTES // (4 * gate.num_gates * width))
    keep = spread(len(labels), most, labels.device)
    known = torch.empty(gate.num_gates, width, int(keep.sum()), device=labels.device)
    correct = torch.empty(known.shape[2], gate.num_gates, device=labels.device)
    order = torch.randperm(known.shape[2]).to(labels.device)
    start = 0
    for rows, block in blocks(logits):
        early = block[keep[rows], :-1].float()
        places = order[start : start + len(early)]
        votes, _ = gate.start(early[:, 0])
        for exit in range(gate.num_gates):
            own, votes = gate.own(exit, early[:, exit], votes)
            known[exit, :, places] = own.T
        correct[places] = (early.argmax(-1) == labels[rows][keep[rows]].unsqueeze(1)).float()
        start += len(early)
    return known, correct


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
    thresholds = shared.thresholds.to(scores).clamp(scores.min(), scores.max()).requires_grad_()  # type: ignore[operator]
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
