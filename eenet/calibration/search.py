"""From a policy with a knob to the setting that keeps a budget or an accuracy, chosen on validation data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eenet.calibration.risk import certify
from eenet.errors import UserError
from eenet.policies import Policy
from eenet.reporting import gather_exits

MAX_CANDIDATES = 200
"""Settings that are compared where accuracy, which is not monotone in the knob, decides."""


class Scored(NamedTuple):
    """What a validation split says of every exit.

    Attributes:
        predictions: Predicted classes, `(samples, exits)`.
        scores: Gate scores, `(samples, exits - 1)`.
        correct: Whether each exit is right, bool `(samples, exits)`.
        fractions: Cost of leaving at each exit, as fractions of the full network's MACs, float64 `(exits,)`.
    """

    predictions: Tensor
    scores: Tensor
    correct: Tensor
    fractions: Tensor

    def rows(self, chosen: Tensor) -> Scored:
        """Some of the samples."""
        return Scored(self.predictions[chosen], self.scores[chosen], self.correct[chosen], self.fractions)

    def exits(self, policy: Policy) -> Tensor:
        """Where each sample leaves, `(samples,)`."""
        return policy.exits(self.predictions, self.scores)

    def cost(self, policy: Policy) -> float:
        """Mean fraction of the full network's MACs."""
        return self.fractions[self.exits(policy)].mean().item()

    def right(self, policy: Policy) -> Tensor:
        """Whether each sample leaves with the right class, bool `(samples,)`."""
        return gather_exits(self.correct, self.exits(policy))


def check_budget(budget: float, field: str = "budget") -> float:
    """A budget is a fraction of the full network's MACs.

    Raises:
        UserError: It is outside (0, 1].
    """
    if not 0 < budget <= 1:
        raise UserError(field, budget, "a budget is a fraction of the full network's cost, in (0, 1]")
    return budget


def policy_for_budget(policy: Policy, scored: Scored, budget: float, field: str = "budget") -> Policy:
    """The dearest setting of a policy whose mean cost keeps a budget, by bisection over its knobs.

    Args:
        policy: Any setting of the policy.
        scored: The validation split.
        budget: Mean fraction of the full network's cost allowed.
        field: What asks for it, for errors.

    Raises:
        UserError: The budget is outside (0, 1], or the cheapest setting costs more.

    Example:
        >>> from eenet.policies import Threshold
        >>> scores = torch.tensor([[0.9], [0.4], [0.6], [0.2]])
        >>> scored = Scored(torch.zeros(4, 2), scores, torch.ones(4, 2) > 0, torch.tensor([0.5, 1.0]))
        >>> round(policy_for_budget(Threshold([0.0]), scored, 0.75).thresholds.item(), 3)
        0.6
    """
    check_budget(budget, field)
    knobs = policy.knobs(scored.scores).tolist()
    cheapest = scored.cost(policy.turned(knobs[0]))
    if cheapest > budget:
        raise UserError(field, budget, f"cannot be met: the cheapest setting costs {cheapest:.3f} of the full network")
    low, high = 0, len(knobs)  # knobs[low] keeps the budget, knobs[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if scored.cost(policy.turned(knobs[middle])) <= budget:
            low = middle
        else:
            high = middle
    return policy.turned(knobs[low])


def policy_for_accuracy(policy: Policy, scored: Scored, max_drop: float) -> Policy:
    """The cheapest setting whose validation accuracy is within some points of the full network's.

    Nothing is certified: the choice is the best of many on one sample, see `policy_for_risk`.

    Args:
        policy: Any setting of the policy.
        scored: The validation split.
        max_drop: Accuracy that may be lost, in percentage points.

    Raises:
        UserError: A negative or infinite drop, or no setting keeps it.
    """
    if not 0 <= max_drop < float("inf"):
        raise UserError("max-accuracy-drop", max_drop, "must be a number of percentage points, at least 0")
    least = scored.correct[:, -1].double().mean() - max_drop / 100 - 1e-12
    for candidate in reversed(candidates(policy, scored)):
        if scored.right(candidate).double().mean() >= least:
            return candidate
    raise UserError("max-accuracy-drop", max_drop, "no setting of the policy keeps it on the validation split")


def policy_for_risk(policy: Policy, scored: Scored, risk: float, delta: float) -> Policy:
    """The cheapest setting whose excess error over the full network is certified, see `eenet.calibration.certify`.

    A tenth of the samples says which settings are compared, the others certify them.

    Args:
        policy: Any setting of the policy.
        scored: The validation split; its samples and later ones have to be exchangeable.
        risk: Excess error allowed, a fraction.
        delta: Probability that the certificate is wrong.

    Raises:
        UserError: Too few samples for `delta`, values out of range, or nothing can be certified.
    """
    order = torch.randperm(len(scored.scores), generator=torch.Generator().manual_seed(0))
    design, judged = scored.rows(order[: len(order) // 10]), scored.rows(order[len(order) // 10 :])
    ordered = candidates(policy, design)
    full = judged.correct[:, -1].double()
    losses = torch.stack([full - judged.right(candidate).double() for candidate in ordered])
    chosen = certify(losses, risk, delta)
    if chosen is None:
        raise UserError("risk", risk, "no setting of the policy can be certified; allow more risk or a larger delta")
    return ordered[chosen]


def candidates(policy: Policy, scored: Scored) -> list[Policy]:
    """At most `MAX_CANDIDATES` settings of a policy, from the dearest to the cheapest, spread evenly over its knobs."""
    knobs = policy.knobs(scored.scores).flip(0)
    chosen = torch.linspace(0, len(knobs) - 1, min(len(knobs), MAX_CANDIDATES)).round().long()
    return [policy.turned(knob) for knob in knobs[chosen].tolist()]
