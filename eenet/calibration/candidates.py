"""The policies among whose settings operating points of a classifier are chosen."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from eenet.calibration.class_thresholds import WIDTHS, class_offsets
from eenet.calibration.deciders import decider
from eenet.calibration.logits import Logits, read_exits
from eenet.calibration.scheduler import fit_scheduler
from eenet.calibration.search import Scored
from eenet.calibration.stopping import find_judge, fit_stopping
from eenet.errors import UserError
from eenet.gates import ConfidenceGate, Gate, StoppingGate, TreeStoppingGate
from eenet.network import EarlyExitNetwork
from eenet.policies import BestWay, ClassThresholds, Policy, PredictedErrors, Threshold
from eenet.profile import CostProfile, Costs
from eenet.tree import Path

Baseline = Literal["max_probability", "entropy", "margin", "per_class", "geometric", "patience", "scheduler", "random"]
"""What needs the exits' logits on the validation split only."""

Stopping = Literal["stopping", "stopping_stateless", "stopping_recall"]
"""Optimal stopping, whose values are fitted to training samples."""

PolicyName = Literal["own"] | Baseline | Stopping
"""What decides: the network's own gates and policy, or what is chosen for its exits as they are."""

POLICY_NAMES: tuple[str, ...] = ("own", *get_args(Baseline), *get_args(Stopping))


STOPPING: dict[str, dict[str, Any]] = {
    "stopping": {},
    "stopping_stateless": {"memory": False},
    "stopping_recall": {"recall": True},
}
"""Policies of optimal stopping, and what their gates are told."""


class Split(NamedTuple):
    """What a network says of a validation split.

    Attributes:
        logits: Of all nodes, `(samples, nodes, classes)`.
        labels: `(samples,)`.
        scores: Of a gate that reads more than logits, as it gives them.
        training: Logits of all nodes on training samples, where the policy is fitted to them.
        reference: Whether the full network is right, bool `(samples,)`, where that is another one.
    """

    logits: Logits
    labels: Tensor
    scores: Tensor | None = None
    training: Logits | None = None
    reference: Tensor | None = None


class Candidate(NamedTuple):
    """A policy with one knob, on a path or a tree, and what the split says of its nodes.

    Attributes:
        policy: Some setting of it.
        gate: `None` for the network's own.
        path: The path that it goes along, where the network has several.
        scored: Predictions, scores and what is right.
        costs: Of its nodes.
        true_scores: Of the true classes, `(samples, nodes)`.
        labels: `(samples,)`.
        kept: Numbers of the early exits that it has, `None` for all.
    """

    policy: Policy
    gate: Gate | None
    path: Path | None
    scored: Scored
    costs: Costs
    true_scores: Tensor
    labels: Tensor
    kept: tuple[int, ...] | None = None

    def keeping(self, exits: Sequence[int]) -> "Candidate":
        """With only some of its early exits, by their numbers here."""
        assert isinstance(self.costs, CostProfile)
        costs, early, nodes = self.costs.keeping(exits), list(exits), [*exits, self.costs.num_exits - 1]
        scored = self.scored._replace(
            predictions=self.scored.predictions[:, nodes],
            scores=self.scored.scores[:, early],
            correct=self.scored.correct[:, nodes],
            fractions=costs.fractions(),
        )
        return self._replace(
            policy=self.policy.keeping(exits),
            gate=None if self.gate is None else self.gate.keeping(exits),
            scored=scored,
            costs=costs,
            true_scores=self.true_scores[:, nodes],
            kept=tuple(exits if self.kept is None else (self.kept[exit] for exit in exits)),
        )

    def in_unit(self, unit: str) -> Scored:
        """What is scored, with costs in another unit."""
        return self.scored._replace(fractions=self.costs.fractions(unit))


def candidates(
    network: EarlyExitNetwork, own: Policy, name: PolicyName, split: Split, unit: str = "macs"
) -> list[Candidate]:
    """The policies among whose settings wishes are met.

    Args:
        network: On the CPU.
        own: The policy that it was trained with.
        name: What decides.
        split: The validation split.
        unit: Of the costs that a policy is fitted to.
    """
    if name in STOPPING:
        return stopping_candidates(network, name, split, unit)
    tree, labels = network.tree, split.labels
    widest = tree.index[tree.full[0]]
    if name in ("own", "random") and isinstance(own, PredictedErrors):
        assert split.scores is not None
        known = read_exits(split.logits, labels, ConfidenceGate(tree.num_early))
        correct = known.predictions == labels.unsqueeze(1)
        scored = Scored(known.predictions, split.scores, correct, network.costs.fractions(), correct[:, widest])
        rest = (scored, network.costs, known.true_scores, labels)
        return [Candidate(policy, None, None, *rest) for policy in own.variants()]
    gate, policy = decider(name, tree.num_early, own, lambda: fit_scheduler(split.logits, labels))
    known = read_exits(split.logits, labels, network.gate if gate is None else gate)
    correct, found = known.predictions == labels.unsqueeze(1), []
    for path in tree.full:
        nodes = tree.along(path)
        if tree.branches:
            gate, policy = decider(name, len(nodes) - 1, own)
        costs = (network if gate is None else network.along(path, gate)).costs
        scored = Scored(
            known.predictions[:, nodes],
            known.scores[:, nodes[:-1]],
            correct[:, nodes],
            costs.fractions(),
            correct[:, widest] if split.reference is None else split.reference,
        )
        own_path = path if tree.branches else None
        variants = [policy]
        if name == "per_class":
            offsets = class_offsets(split.logits, labels)
            variants = [ClassThresholds(0.0, (width * offsets).tolist()) for width in WIDTHS]
        for variant in variants:
            found.append(Candidate(variant, gate, own_path, scored, costs, known.true_scores[:, nodes], labels))
    return found


def stopping_candidates(network: EarlyExitNetwork, name: PolicyName, split: Split, unit: str) -> list[Candidate]:
    """Optimal stopping at several prices of the cost, fitted to training samples.

    Args:
        network: On the CPU.
        name: One of `STOPPING`.
        split: The validation split, and logits on training samples.
        unit: Of the cost that is priced.

    Raises:
        UserError: There are too few training samples.
    """
    assert split.training is not None
    gate, tree, labels = stopping_gate(network, name), network.tree, split.labels
    costs = network.with_gate(gate).costs
    right = read_exits(split.logits, labels, ConfidenceGate(tree.num_early)).predictions == labels.unsqueeze(1)
    full = tree.index[tree.full[0]]
    judge = find_judge(right, full)
    values = fit_stopping(gate, split.training, costs.fractions(unit), judge=judge)
    known = read_exits(split.logits, labels, values)
    correct, found = known.predictions == labels.unsqueeze(1), []
    policies: list[Policy] = [Threshold([0.0] * tree.num_early)]
    if tree.branches:
        policies = [BestWay(width, 0.0, tree.nodes) for width in dict.fromkeys(path[0] for path in tree.nodes)]
    reference = correct[:, full]
    for fitted, scores in zip(values.gates, known.scores.unbind(-1), strict=True):
        scored = Scored(known.predictions, scores, correct, costs.fractions(), reference)
        for policy in policies:
            found.append(Candidate(policy, fitted, None, scored, costs, known.true_scores, labels))
    return found


def stopping_gate(network: EarlyExitNetwork, name: PolicyName) -> StoppingGate | TreeStoppingGate:
    """The gate of one of `STOPPING`, not fitted; a `UserError` where it would remember something and paths branch."""
    tree, classes = network.tree, network.backbone.num_classes
    if not tree.branches:
        return StoppingGate(tree.num_early, classes, **STOPPING[name])
    if name == "stopping_recall":
        raise UserError("policy", name, "is for networks of one path; take stopping")
    return TreeStoppingGate(tree.nodes, classes)


def nearest(candidates: list[Candidate], unit: str, budget: float) -> list[Candidate]:
    """Of candidates at several prices those whose mean cost, as they are fitted, is nearest to a budget.

    Labels have no part in it, so that no lucky price is taken.

    Args:
        candidates: Policies as they are fitted.
        unit: Of the budget.
        budget: Mean fraction of the full network's cost.

    Returns:
        One for every node at which some begin.
    """
    found: dict[int, tuple[float, Candidate]] = {}
    for candidate in candidates:
        distance = abs(candidate.in_unit(unit).cost(candidate.policy) - budget)
        node = candidate.policy.first_node
        if node not in found or distance < found[node][0]:
            found[node] = distance, candidate
    return [candidate for _, candidate in found.values()]
