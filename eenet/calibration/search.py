"""From a policy with a knob to the setting that keeps a budget or an accuracy, chosen on validation data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eenet.calibration.risk import certify, check_level, content_order
from eenet.errors import UnmetError, UserError
from eenet.policies import Policy
from eenet.reporting import gather_exits

MAX_CANDIDATES = 200
"""Settings that are compared where each has to be certified, or to generate text."""


class Scored(NamedTuple):
    """What a validation split says of every node; in a chain, of every exit.

    Attributes:
        predictions: Predicted classes, `(samples, nodes)`.
        scores: Gate scores, `(samples, early nodes)`, or what else the gate gives.
        correct: Whether each node is right, bool `(samples, nodes)`.
        fractions: Cost of leaving at each node, as fractions of the full network's, float64 `(nodes,)`.
        reference: Whether the full network is right, bool `(samples,)`; `None` where it is the last node.
    """

    predictions: Tensor
    scores: Tensor
    correct: Tensor
    fractions: Tensor
    reference: Tensor | None = None

    @property
    def full(self) -> Tensor:
        """Whether the full network is right, bool `(samples,)`."""
        return self.correct[:, -1] if self.reference is None else self.reference

    def rows(self, chosen: Tensor) -> Scored:
        """Some of the samples."""
        rows = (self.predictions[chosen], self.scores[chosen], self.correct[chosen])
        return Scored(*rows, self.fractions, None if self.reference is None else self.reference[chosen])

    def exits(self, policy: Policy) -> Tensor:
        """Where each sample leaves, `(samples,)`."""
        return policy.exits(self.predictions, self.scores)

    def cost(self, policy: Policy) -> float:
        """Mean fraction of the full network's MACs."""
        return cost_of(self.exits(policy), self.fractions)

    def right(self, policy: Policy) -> Tensor:
        """Whether each sample leaves with the right class, bool `(samples,)`."""
        return gather_exits(self.correct, self.exits(policy))

    def contents(self) -> list[bytes]:
        """What is known of each sample."""
        scores = self.scores.flatten(1).double()
        rows = torch.cat([self.predictions.double(), scores, self.correct.double()], dim=1)
        return [row.tobytes() for row in rows.cpu().numpy()]


def sweep(policy: Policy, scored: Scored) -> Sweep:
    """A policy at every setting of its knob, from the cheapest to the dearest."""
    return Sweep(policy, scored) if policy.tree is None else NodeSweep(policy, scored)


class Sweep:
    """A policy that leaves or goes on, at every setting of its knob, from the cheapest to the dearest.

    Samples leave later when the knob grows, so that a sum over each exit's knobs stands for routing at all of them.

    Args:
        policy: Any setting of the policy.
        scored: The validation split.

    Attributes:
        knobs: The settings, float64 `(settings,)`.
        costs: Mean fraction of the full network's cost, float64 `(settings,)`, never falling.

    Example:
        >>> from eenet.policies import Threshold
        >>> scores = torch.tensor([[0.9], [0.4], [0.6], [0.2]])
        >>> scored = Scored(torch.zeros(4, 2), scores, torch.ones(4, 2) > 0, torch.tensor([0.5, 1.0]))
        >>> Sweep(Threshold([0.0]), scored).costs.tolist()
        [0.5, 0.5, 0.625, 0.75, 0.875, 1.0]
    """

    def __init__(self, policy: Policy, scored: Scored) -> None:
        self.policy, self.samples = policy, len(scored.scores)
        self.knobs = policy.knobs(scored.scores)
        self._departures = policy.departures(scored.predictions, scored.scores, self.knobs)
        stayed = [self._beyond(exit, None) for exit in range(scored.scores.shape[1])]
        arrived = [torch.full_like(self.knobs, self.samples), *stayed]
        left = [here - on for here, on in zip(arrived, [*stayed, torch.zeros_like(self.knobs)], strict=True)]
        self.costs = mean_cost(left, scored.fractions)

    def means(self, values: Tensor) -> Tensor:
        """At each setting the mean of what samples have where they leave, float64 `(settings,)`.

        Args:
            values: `(samples, exits)`.
        """
        values = values.double()
        total = values[:, 0].sum().expand(len(self.knobs))
        for exit in range(values.shape[1] - 1):
            total = total + self._beyond(exit, values[:, exit + 1] - values[:, exit])
        return total / self.samples

    def _beyond(self, exit: int, weights: Tensor | None) -> Tensor:
        """At each setting the weight of the samples that go beyond an early exit."""
        settings = len(self.knobs)
        return self._departures[:, exit].bincount(weights, settings + 1)[:settings].cumsum(0).double()

    def turned(self, setting: int) -> Policy:
        """The policy at a setting, by its number."""
        return self.policy.turned(self.knobs[setting].item())


class NodeSweep(Sweep):
    """A policy that chooses among nodes, at every setting of its knob, each of which routes the samples.

    Args:
        policy: Any setting of the policy.
        scored: The validation split.
    """

    def __init__(self, policy: Policy, scored: Scored) -> None:
        self.policy, self.samples = policy, len(scored.scores)
        knobs = policy.knobs(scored.scores)
        nodes = torch.stack([scored.exits(policy.turned(knob)) for knob in knobs.tolist()])
        costs = torch.tensor([cost_of(row, scored.fractions) for row in nodes], dtype=torch.float64)
        order = costs.argsort(stable=True)
        self.knobs, self.costs, self._nodes = knobs[order], costs[order], nodes[order]

    def means(self, values: Tensor) -> Tensor:
        """As of any sweep, from values `(samples, nodes)`."""
        return torch.stack([gather_exits(values.double(), row).mean() for row in self._nodes])


def mean_cost(leaving: list[Tensor], fractions: Tensor) -> Tensor:
    """Mean cost of samples by how many leave at each exit; the same to the last bit for one setting and for many."""
    costs = sum(
        (count * fraction for count, fraction in zip(leaving, fractions.double(), strict=True)), torch.zeros(())
    )
    return costs / sum(leaving, torch.zeros(()))


def cost_of(exits: Tensor, fractions: Tensor) -> float:
    """Mean cost of samples by where they leave, `(samples,)`."""
    return mean_cost(list(exits.bincount(minlength=len(fractions))), fractions).item()


def standard_error(right: Tensor, clusters: Tensor | None = None) -> float:
    """Of the share of right answers among samples, bool `(samples,)`: `sqrt(p (1 - p) / n)`.

    Args:
        right: Whether each is right.
        clusters: Which samples belong together, as tokens of a text do, `(samples,)`: only whole clusters are
            independent (Liang & Zeger 1986).

    Example:
        >>> right = torch.arange(100) < 90
        >>> round(standard_error(right), 3), round(standard_error(right, torch.arange(100) // 10), 3)
        (0.03, 0.095)
    """
    residuals = right.double() - right.double().mean()
    if clusters is not None:
        residuals = residuals.new_zeros(int(clusters.max()) + 1).index_add_(0, clusters, residuals)
    return residuals.square().sum().sqrt().item() / len(right)


def check_budget(budget: float, field: str = "budget") -> float:
    """A budget is a fraction of the full network's MACs.

    Raises:
        UserError: It is outside (0, 1].
    """
    if not 0 < budget <= 1:
        raise UserError(field, budget, "a budget is a fraction of the full network's cost, in (0, 1]")
    return budget


def check_drop(drop: float) -> float:
    """A drop of accuracy is a number of percentage points.

    Raises:
        UserError: It is negative, or not finite.
    """
    if not 0 <= drop < float("inf"):
        raise UserError("max-accuracy-drop", drop, "must be a number of percentage points, at least 0")
    return drop


def policy_for_budget(
    policy: Policy, scored: Scored, budget: float, field: str = "budget", dearest: bool = False
) -> Policy:
    """The most accurate setting of a policy whose mean cost keeps a budget, of equals the cheapest.

    All settings are compared. Accuracy need not grow with cost, and the best of many on one sample is partly lucky:
    elsewhere it does a little worse, by about its standard error. The dearest setting within the budget looks at no
    label, so that few samples mislead it less.

    Args:
        policy: Any setting of the policy.
        scored: The validation split.
        budget: Mean fraction of the full network's cost allowed.
        field: What asks for it, for errors.
        dearest: Take the dearest setting that keeps the budget, however accurate.

    Raises:
        UserError: The budget is outside (0, 1].
        UnmetError: The cheapest setting costs more.

    Example:
        >>> from eenet.policies import Threshold
        >>> scores = torch.tensor([[0.9], [0.4], [0.6], [0.2]])
        >>> correct = torch.tensor([[True, True], [False, True], [True, False], [False, True]])
        >>> scored = Scored(torch.zeros(4, 2), scores, correct, torch.tensor([0.5, 1.0]))
        >>> round(policy_for_budget(Threshold([0.0]), scored, 1.0).thresholds.item(), 3)
        0.6
    """
    check_budget(budget, field)
    return within_budget(policy, scored, budget, field, dearest)


def within_budget(policy: Policy, scored: Scored, budget: float, field: str, dearest: bool = False) -> Policy:
    """As `policy_for_budget`, for any budget: routing may cost more than the full network."""
    swept = sweep(policy, scored)
    kept = int((swept.costs <= budget).sum())
    if not kept:
        cheapest = swept.costs[0].item()
        raise UnmetError(field, budget, f"cannot be met: the cheapest setting costs {cheapest:.3f} of the full network")
    return swept.turned(kept - 1 if dearest else int(swept.means(scored.correct)[:kept].argmax()))


def policy_for_accuracy(policy: Policy, scored: Scored, max_drop: float) -> Policy:
    """The cheapest setting whose validation accuracy is within some points of the full network's.

    Nothing is certified: the choice is the best of many on one sample, see `policy_for_risk`.

    Args:
        policy: Any setting of the policy.
        scored: The validation split.
        max_drop: Accuracy that may be lost, in percentage points.

    Raises:
        UserError: A negative or infinite drop.
        UnmetError: No setting keeps it.
    """
    least = scored.full.double().mean() - check_drop(max_drop) / 100 - 1e-12
    swept = sweep(policy, scored)
    keeping = (swept.means(scored.correct) >= least).nonzero()
    if not len(keeping):
        raise UnmetError("max-accuracy-drop", max_drop, "no setting of the policy keeps it on the validation split")
    return swept.turned(int(keeping[0]))


def design_rows(scored: Scored) -> tuple[Tensor, Tensor]:
    """The tenth of the samples that says which settings are compared, and the others, which certify them.

    Which ones depends on what the samples are, not on their order.
    """
    order = content_order(scored.contents())
    return order[: len(order) // 10], order[len(order) // 10 :]


def policy_for_risk(
    policy: Policy, scored: Scored, risk: float, delta: float, rows: tuple[Tensor, Tensor] | None = None
) -> Policy:
    """The cheapest setting whose excess error over the full network is certified, see `eenet.calibration.certify`.

    Args:
        policy: Any setting of the policy.
        scored: The validation split; its samples and later ones have to be exchangeable.
        risk: Excess error allowed, a fraction.
        delta: Probability that the certificate is wrong.
        rows: From `design_rows`, where several policies are compared on the first of them.

    Raises:
        UserError: Values out of range.
        UnmetError: Too few samples, or nothing can be certified.
    """
    check_level(risk, delta)
    design, judged = (scored.rows(chosen) for chosen in rows or design_rows(scored))
    ordered = candidates(policy, design)
    full = judged.full.long()
    chosen = certify((full - judged.right(candidate).long() for candidate in ordered), risk, delta)
    if chosen is None:
        raise UnmetError("risk", risk, "no setting of the policy can be certified; allow more risk or a larger delta")
    return ordered[chosen]


def candidates(policy: Policy, scored: Scored) -> list[Policy]:
    """At most `MAX_CANDIDATES` settings of a policy, from the dearest to the cheapest, spread evenly over its knobs."""
    knobs = policy.knobs(scored.scores).flip(0)
    chosen = torch.linspace(0, len(knobs) - 1, min(len(knobs), MAX_CANDIDATES)).round().long()
    return [policy.turned(knob) for knob in knobs[chosen].tolist()]
