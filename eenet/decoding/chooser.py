"""Choosing operating points of a decoder's exits, by what they change in the full model's text."""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eenet.calibration import (
    ChosenOn,
    OperatingPoint,
    Sweep,
    betting_p_value,
    check_samples,
    content_order,
    policy_for_accuracy,
    policy_for_budget,
    standard_error,
)
from eenet.calibration.candidates import STOPPING
from eenet.calibration.points import point_name
from eenet.calibration.search import candidates
from eenet.calibration.wishes import DECODER_WISHES, Wishes
from eenet.decoding.judging import Row, full_executor, generated_rows, overlap, split_batches
from eenet.decoding.network import DecoderNetwork
from eenet.decoding.routed import RoutedExecutor
from eenet.decoding.scoring import Contender, contenders, stopping_contenders
from eenet.errors import UnmetError, UserError
from eenet.metrics import choice_shares
from eenet.policies import Policy
from eenet.progress import tracked
from eenet.reporting import gather_exits

POLICIES = (
    *("own", "max_probability", "entropy", "margin", "saturation", "patience"),
    *("stopping", "stopping_stateless"),
)
"""What can decide."""

Setting = tuple[Contender, Policy]
"""A contender, and a setting of its policy."""

CANDIDATES = 10
"""Settings that are generated with, from the dearest to the cheapest, until one is not good enough."""


def check_token_wishes(name: str, wishes: Wishes) -> None:
    """Raise a `UserError` for what cannot be asked of a decoder, before anything runs."""
    if name not in POLICIES:
        raise UserError("policy", name, f"must be one of {', '.join(POLICIES)} for a decoder")
    wishes.require(DECODER_WISHES, f"is for classifiers; a decoder's exits take {', '.join(DECODER_WISHES)}")


class TokenChooser:
    """Chooses points of one policy on the validation prompts.

    Args:
        network: The decoder with its exits.
        own: The policy that it was trained with.
        name: What decides, one of `POLICIES`.
        wishes: Some of `DECODER_WISHES`.
        data: Its prompts and texts, a `datamodules.Continuations`.
        device: Where the network is.
        chosen_on: What the points are chosen on, but for the number of tokens.

    Attributes:
        contenders: The policy, once for each price of the cost where values are fitted.
        shares: Of the tokens that leave at each exit, by the name of the point.
    """

    left_out: tuple[UnmetError, ...] = ()

    def __init__(
        self,
        network: DecoderNetwork,
        own: Policy,
        name: str,
        wishes: Wishes,
        data: Any,
        device: torch.device,
        chosen_on: ChosenOn,
    ) -> None:
        self.name, self.wishes, self.data, self.device = name, wishes, data, device
        find = stopping_contenders if name in STOPPING else contenders
        self.network, self.contenders, self.nll, self.full_nll = find(network, name, own.cpu(), data, device)
        self.chosen_on = replace(chosen_on, samples=len(self.full_nll))
        self.shares: dict[str, list[float]] = {}
        self._full: list[Row] = []

    def point(self, wish: str, value: float) -> OperatingPoint:
        """The point that a wish asks for; an `UnmetError` where no setting meets it."""
        got: dict[str, float] = {}
        if wish == "budget":
            found = self.within_budget(value)
        elif wish == "max-disagreement":
            found = self.within_disagreement(value)
        elif wish == "max-perplexity-increase":
            found = self.within_perplexity(value)
        elif wish == "max-rouge-drop":
            found, got["rougeL_full"] = self.within_rouge(value)
        else:
            found, got["rougeL_full"] = self.certified(value, self.wishes.delta)
        (_, gate, scored), policy = found
        exits, right = scored.exits(policy), scored.right(policy)
        nll = gather_exits(self.nll, exits).double().mean() - self.full_nll.double().mean()
        layers = torch.tensor(self.network.costs.stages_run, dtype=torch.float64)[exits].mean().item()
        got |= {
            "agreement": right.double().mean().item(),
            "agreement_se": standard_error(right, self.data.table("val").texts),
            "perplexity_increase": 100 * (math.exp(nll.item()) - 1),
            "layers_fraction": layers / self.network.backbone.num_stages,
            "macs_fraction": scored.cost(policy),
        }
        self.shares[point_name(self.name, wish, value)] = choice_shares(exits, self.network.num_exits).tolist()
        return OperatingPoint(policy, gate, self.wishes.asked(wish, value), got, chosen_on=self.chosen_on)

    def within_budget(self, budget: float) -> Setting:
        """The setting that agrees most within a budget, at the price whose mean cost as fitted is nearest to it."""
        near = min(self.contenders, key=lambda one: abs(one.scored.cost(one.policy) - budget))
        return near, policy_for_budget(near.policy, near.scored, budget, dearest=self.wishes.dearest)

    def within_disagreement(self, share: float) -> Setting:
        """The cheapest setting that changes at most a share of the full model's tokens."""
        try:
            return cheapest(self.contenders, lambda one: policy_for_accuracy(one.policy, one.scored, 100 * share))
        except UnmetError as error:
            raise UnmetError("max-disagreement", share, error.problem) from error

    def within_perplexity(self, percent: float) -> Setting:
        """The cheapest setting whose perplexity of the full model's text is at most some percent above its own."""
        most = self.full_nll.double().mean() + math.log1p(percent / 100) + 1e-9

        def keeping(one: Contender) -> Policy:
            swept = Sweep(one.policy, one.scored)
            kept = (swept.means(self.nll) <= most).nonzero()
            if not len(kept):
                problem = "no setting of the policy keeps it on the validation split"
                raise UnmetError("max-perplexity-increase", percent, problem)
            return swept.turned(int(kept[0]))

        return cheapest(self.contenders, keeping)

    def within_rouge(self, points: float) -> tuple[Setting, float]:
        """The cheapest setting before the first whose texts' mean ROUGE-L is too low, and that ROUGE-L."""
        chosen = None
        for setting in settings(self.contenders):
            distance = self.distances(*setting).mean().item()
            if 100 * distance > points:
                break
            chosen = setting, 1 - distance
        if chosen is None:
            raise UnmetError("max-rouge-drop", points, "no setting of the policy keeps it on the validation split")
        return chosen

    def certified(self, risk: float, delta: float) -> tuple[Setting, float]:
        """The cheapest certified setting, and its mean ROUGE-L on the prompts that certified it.

        The risk is the expected distance of a prompt's text from the full model's, 1 - ROUGE-L (the textual consistency
        of CALM, Schuster et al. 2022). Prompts are the samples, as tokens of one text are not independent. A tenth of
        them says which settings are compared, the others certify them; which, and in which order they are bet on, is
        drawn by what they say.
        """
        table, prompts = self.data.table("val"), self.data.prompts("val")
        order = content_order(array("q", prompt).tobytes() for prompt in prompts.prompts)
        cut = len(order) // 10
        check_samples(
            risk, delta, len(order) - cut, lambda samples, *level: betting_p_value(torch.zeros(samples), *level)
        )
        if cut == 0:
            raise UnmetError("risk", risk, "needs at least 10 validation prompts; raise data.val_size")
        chosen = None
        for setting in settings(self.contenders, torch.isin(table.texts, order[:cut])):
            distances = self.distances(*setting)[order[cut:]]
            if betting_p_value(distances, risk, delta) > delta:
                break
            chosen = setting, 1 - distances.mean().item()
        if chosen is None:
            raise UnmetError("risk", risk, "no setting can be certified; allow more risk or a larger delta")
        return chosen

    @torch.no_grad()
    def distances(self, contender: Contender, policy: Policy) -> Tensor:
        """1 - ROUGE-L of every validation prompt's text against the full model's, `(prompts,)`."""
        data = self.data
        prompts = data.prompts("val")
        batches = list(split_batches(len(prompts), data.text_batch_size))
        if not self._full:
            full = full_executor(self.network)
            work = tracked(batches, "generating with the full model")
            self._full = [row for batch in work for row in generated_rows(full, prompts, batch, data.decode)]
        gate = contender.gate
        network = self.network if gate is None else self.network.with_gate(gate.to(self.device))
        routed = RoutedExecutor(network, policy.to(self.device))
        work = tracked(batches, "generating with a setting of the policy")
        rows = [row for batch in work for row in generated_rows(routed, prompts, batch, data.decode)]
        policy.cpu()
        pairs = zip(rows, self._full, strict=True)
        return torch.tensor([1 - overlap(row["text"], full["text"]) for row, full in pairs])


def cheapest(contenders: Sequence[Contender], meet: Callable[[Contender], Policy]) -> Setting:
    """Of the settings by which contenders meet a wish the cheapest, of equals the one that agrees most.

    Args:
        contenders: Some.
        meet: The setting by which one meets it; raises an `UnmetError` where none does.
    """
    found, unmet = list[tuple[float, int, Contender, Policy]](), None
    for one in contenders:
        try:
            policy = meet(one)
        except UnmetError as error:
            unmet = error
            continue
        found.append((one.scored.cost(policy), -int(one.scored.right(policy).sum()), one, policy))
    if not found and unmet is not None:
        raise unmet
    return min(found, key=lambda row: row[:2])[2:]


def settings(contenders: Sequence[Contender], rows: Tensor | None = None) -> list[Setting]:
    """At most `CANDIDATES` settings, from the dearest to the cheapest, of even steps in mean cost.

    At each step every contender has a setting that is nearest to it, and the one that agrees most is taken.

    Args:
        contenders: Some.
        rows: The tokens that say what settings cost and keep, bool `(tokens,)`; all by default.
    """
    judged = [one.scored if rows is None else one.scored.rows(rows) for one in contenders]
    tried = [candidates(one.policy, scored) for one, scored in zip(contenders, judged, strict=True)]
    costs = [torch.tensor([*map(scored.cost, own)]) for scored, own in zip(judged, tried, strict=True)]
    dearest, least = torch.cat(costs).max().item(), torch.cat(costs).min().item()
    chosen = dict[Policy, Contender]()
    for level in torch.linspace(dearest, least, CANDIDATES):
        near = [own[int((cost - level).abs().argmin())] for own, cost in zip(tried, costs, strict=True)]
        agreed = [scored.right(policy).sum().item() for scored, policy in zip(judged, near, strict=True)]
        best = agreed.index(max(agreed))
        chosen[near[best]] = contenders[best]
    return [(one, policy) for policy, one in chosen.items()]
