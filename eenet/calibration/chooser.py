"""Choosing operating points of a classifier: a policy on every path, by what a validation split says."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eenet.calibration.candidates import (
    POLICY_NAMES,
    STOPPING,
    Candidate,
    PolicyName,
    Split,
    candidates,
    nearest,
    stopping_gate,
)
from eenet.calibration.chosen import ChosenOn
from eenet.calibration.conformal import Quantiles, conformal_quantiles
from eenet.calibration.geometric import fit_geometric
from eenet.calibration.placing import check_placing, place
from eenet.calibration.points import OperatingPoint, point_name
from eenet.calibration.scheduler import fit_schedule
from eenet.calibration.search import (
    Scored,
    check_budget,
    cost_of,
    design_rows,
    policy_for_accuracy,
    policy_for_risk,
    standard_error,
    sweep,
    within_budget,
)
from eenet.calibration.wishes import BUDGETS, WISHES, Wishes
from eenet.errors import UnmetError, UserError
from eenet.metrics import choice_shares
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, RandomExits
from eenet.profile import Seconds
from eenet.reporting import gather_exits


def check_wishes(network: EarlyExitNetwork, name: Any, wishes: Wishes) -> None:
    """Refuse what cannot be asked of a classifier, before anything runs.

    Raises:
        UserError: A wish or policy is for decoders or quantized networks, or a budget is above all that the network
            costs.
    """
    if name not in POLICY_NAMES:
        raise UserError("policy", name, "is for runs that trained exits on a decoder")
    columns = network.costs.columns
    if "bitops" not in columns:
        wishes.forbid(("budget-bitops",), "is for runs of QuEE or on a quantized backbone")
    wishes.require(WISHES, "is for runs that trained exits on a decoder")
    if name in ("scheduler", "geometric") and wishes.dearest:
        raise UserError("dearest", True, f"the {name} policy finds thresholds for a budget; leave it out")
    if name == "random":
        wishes.require(BUDGETS, "random routing takes a budget's exit fractions and has no other wish")
    if wishes.values.get("budget-ms") and (network.tree.branches or name in ("random", *STOPPING)):
        problem = "is for policies on a chain of exits whose values need no cost: not for random and stopping"
        raise UserError("budget-ms", wishes.values["budget-ms"], problem)
    if wishes.place:
        wishes.require((*BUDGETS, "max-accuracy-drop"), "is certified for all exits; leave --place out")
        check_placing(network, name)
    if name == "geometric":
        wishes.require(BUDGETS, "geometric exit fractions are those of a budget and have no other wish")
    if name == "stopping_recall":
        stopping_gate(network, name)
    if name in ("random", "scheduler", "geometric") and network.tree.branches:
        raise UserError("policy", name, "is for networks of one path; take own, a confidence or patience")
    for wish, value in wishes:
        full = columns["macs"].full
        if wish == "budget-macs" and value > full:
            raise UserError(wish, value, f"is more than the full network's {full:g}; ask for at most those")
        if wish == "budget-bitops" and not network.tree.branches:
            check_budget(value, wish)


class Judged(NamedTuple):
    """What a candidate gives for a wish.

    Attributes:
        rank: Larger for better; of one that meets the wish above all that do not.
        found: The setting that meets it, or why none does.
    """

    rank: tuple[float, float, float]
    found: Policy | UnmetError


class Clock(NamedTuple):
    """How budgets in milliseconds are met.

    Attributes:
        profile: What the network's parts take.
        routed: Milliseconds per sample that a point takes, measured.
    """

    profile: Seconds
    routed: Callable[[OperatingPoint], float]


ATTEMPTS = 5
"""Points of which the clock is asked before a budget in milliseconds is given up."""


class Chooser:
    """Chooses points of one policy on the validation split.

    Where the network's tree branches, a policy that leaves or goes on is tried along every full path, and one that
    chooses among nodes from every first width: the best of all settings is taken.

    Args:
        network: On the CPU.
        own: The policy that the network was trained with.
        name: What decides.
        wishes: What is asked for.
        split: The validation split.
        chosen_on: What the points are chosen on.
        clock: For budgets in milliseconds.

    Attributes:
        left_out: Why modes of conformal sets are left out.
        shares: Of the samples that leave at each exit, by the name of the point.
    """

    def __init__(
        self,
        network: EarlyExitNetwork,
        own: Policy,
        name: PolicyName,
        wishes: Wishes,
        split: Split,
        chosen_on: ChosenOn,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.wishes, self.chosen_on, self.clock = name, wishes, chosen_on, clock
        self.num_classes = network.backbone.num_classes
        self.left_out: list[UnmetError] = []
        self.shares: dict[str, list[float]] = {}
        self._candidates = cache(lambda unit: candidates(network, own, name, split, unit))
        self.candidates = self._candidates("macs")

    def point(self, wish: str, value: float) -> OperatingPoint:
        """The point that a wish asks for; an `UnmetError` where no setting meets it."""
        if wish != "budget-ms":
            return self._point(wish, value, value)
        assert self.clock is not None
        aim = value
        for _ in range(ATTEMPTS):
            try:
                point = self._point(wish, value, aim)
            except UnmetError as error:
                least = 1000 * self.clock.profile.per_sample[0]
                problem = f"cannot be met: a sample that leaves at the first exit takes {least:.3g} ms"
                raise UnmetError(wish, value, problem) from error
            point.got["ms"] = taken = self.clock.routed(point)
            if taken <= value:
                return point
            aim *= 0.98 * value / taken  # rows of a batch share what a step costs whatever its size
        problem = f"the clock said {taken:.3g} ms of the last of {ATTEMPTS} settings that should have kept it"
        raise UnmetError(wish, value, problem)

    def _point(self, wish: str, value: float, aim: float) -> OperatingPoint:
        """The point for a wish when choosing aims at another value of it."""
        candidate, policy = self.choose(wish, aim)
        nodes = candidate.scored.exits(policy)
        right = gather_exits(candidate.scored.correct, nodes)
        got = {"accuracy": right.double().mean().item(), "accuracy_se": standard_error(right)}
        for unit, column in candidate.costs.columns.items():
            got[f"{unit}_fraction"] = cost_of(nodes, column.fractions())
        exits = torch.tensor(list(candidate.costs.node_exits))[nodes]
        called = point_name(self.name, wish, value, self.wishes.place)
        self.shares[called] = choice_shares(exits, candidate.costs.num_exits).tolist()
        conformal = self.conformal(candidate, nodes)
        asked = self.wishes.asked(wish, value)
        rest = (self.chosen_on, candidate.path, candidate.kept)
        return OperatingPoint(policy, candidate.gate, asked, got, conformal, *rest)

    def conformal(self, candidate: Candidate, nodes: Tensor) -> dict[tuple[str, float], Quantiles]:
        """Quantiles by mode and miscoverage, without those that need more samples than there are."""
        found: dict[tuple[str, float], Quantiles] = {}
        rule, labels, classes = self.wishes.rule, candidate.labels, self.num_classes
        for alpha in self.wishes.alphas:
            for mode in self.wishes.modes:
                try:
                    found[mode, alpha] = conformal_quantiles(
                        candidate.true_scores, nodes, alpha, mode, rule, labels, classes
                    )
                except UnmetError as error:
                    remedy = "give more samples, a larger alpha or --quantile textbook"
                    self.left_out.append(UnmetError("alpha", alpha, f"{error.problem} ({mode}); {remedy}"))
        return found

    def choose(self, wish: str, value: float) -> tuple[Candidate, Policy]:
        """The candidate and its setting that meet a wish: the most accurate within a budget, else the cheapest.

        For a certificate the candidate is chosen on the samples that say which settings are compared.

        Raises:
            UnmetError: No setting does.
        """
        if wish == "risk" and len(self.candidates) > 1:
            rows = design_rows(self.candidates[0].scored)
            candidate, _ = self._best("max-accuracy-drop", 100 * value, rows[0])
            return candidate, policy_for_risk(candidate.policy, candidate.scored, value, self.wishes.delta, rows)
        return self._best(wish, value)

    def _best(self, wish: str, value: float, rows: Tensor | None = None) -> tuple[Candidate, Policy]:
        unit = "bitops" if wish == "budget-bitops" else "macs"
        tried = self.candidates
        if self.name in STOPPING:
            tried = self._candidates(unit)
            tried = nearest(tried, unit, self.budget(wish, value)) if wish in BUDGETS else tried
        if self.wishes.place:
            tried = [place(candidate, lambda one: self.judge(one, unit, wish, value).rank) for candidate in tried]
        judged = [self.judge(candidate, unit, wish, value, rows) for candidate in tried]
        best = max(range(len(tried)), key=lambda number: judged[number].rank)
        if isinstance(found := judged[best].found, UnmetError):
            raise found
        return tried[best], found

    def judge(self, candidate: Candidate, unit: str, wish: str, value: float, rows: Tensor | None = None) -> Judged:
        """How well a candidate meets a wish at the setting that meets it best.

        Args:
            candidate: The candidate.
            unit: Of its costs.
            wish: What is asked for.
            value: Of the wish.
            rows: The samples that judge, all by default.
        """
        scored = candidate.in_unit(unit)
        if wish == "budget-ms":
            assert self.clock is not None
            parts = self.clock.profile
            parts = parts if candidate.kept is None else parts.keeping(candidate.kept)
            scored = scored._replace(fractions=parts.fractions())
        scored = scored if rows is None else scored.rows(rows)
        try:
            policy = self.setting(candidate.policy, scored, wish, value)
        except UnmetError as error:
            told = UnmetError(wish, value, error.problem) if wish in BUDGETS else error  # in the units of the wish
            return Judged((0.0, -sweep(candidate.policy, scored).costs[0].item(), 0.0), told)
        accuracy, cost = scored.right(policy).double().mean().item(), scored.cost(policy)
        if wish not in BUDGETS:
            return Judged((1.0, -cost, accuracy), policy)
        return Judged((1.0, cost, accuracy) if self.wishes.dearest else (1.0, accuracy, -cost), policy)

    def budget(self, wish: str, value: float) -> float:
        """What a wish for a budget allows, as a fraction of the full network's cost."""
        if wish == "budget-ms":
            assert self.clock is not None
            return value / 1000 * self.clock.profile.batch_size / self.clock.profile.full
        return value / self.candidates[0].costs.full if wish == "budget-macs" else value

    def setting(self, policy: Policy, scored: Scored, wish: str, value: float) -> Policy:
        """The setting of a policy that meets a wish; an `UnmetError` where none does."""
        if wish in BUDGETS:
            budget = self.budget(wish, value)
            if self.name == "geometric":
                return fit_geometric(scored, budget, wish)
            if self.name == "scheduler":
                return fit_schedule(scored, budget)
            chosen = within_budget(policy, scored, budget, wish, self.wishes.dearest)
            return chosen if self.name != "random" else random_like(chosen, scored)
        if wish == "max-accuracy-drop":
            return policy_for_accuracy(policy, scored, value)
        return policy_for_risk(policy, scored, value, self.wishes.delta)


def random_like(policy: Policy, scored: Scored) -> RandomExits:
    """Random routing at the exit fractions that a policy has on the validation split."""
    return RandomExits(choice_shares(scored.exits(policy), len(scored.fractions)).tolist())
