"""Choosing operating points of a decoder's exits, by what they change in the full model's text."""

import math
from array import array
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.calibration import (
    ChosenOn,
    OperatingPoint,
    Scored,
    Sweep,
    betting_p_value,
    check_samples,
    content_order,
    policy_for_accuracy,
    policy_for_budget,
    standard_error,
)
from eenet.calibration.deciders import decider
from eenet.calibration.points import point_name
from eenet.calibration.search import candidates
from eenet.calibration.wishes import DECODER_WISHES, Wishes
from eenet.decoding.judging import Row, full_executor, generated_rows, overlap, split_batches
from eenet.decoding.network import DecoderNetwork
from eenet.decoding.routed import RoutedExecutor
from eenet.errors import UnmetError, UserError
from eenet.metrics import choice_shares
from eenet.policies import Policy
from eenet.progress import tracked
from eenet.reporting import gather_exits

POLICIES = ("own", "max_probability", "entropy", "margin", "saturation", "patience")
"""What can decide."""

CANDIDATES = 10
"""Settings that are generated with, from the dearest to the cheapest, until one is not good enough."""


def check_token_wishes(name: str, wishes: Wishes) -> None:
    """Raise a `UserError` for what cannot be asked of a decoder, before anything runs."""
    if name not in POLICIES:
        raise UserError("policy", name, f"must be one of {', '.join(POLICIES)} for a decoder")
    wishes.require(DECODER_WISHES, f"is for classifiers; a decoder's exits take {', '.join(DECODER_WISHES)}")


class TokenScores(NamedTuple):
    """What the validation tokens say of every exit.

    Attributes:
        scored: An exit is right where its most likely token is the full model's.
        nll: Of the tokens, in nats, `(tokens, exits)`.
        full_nll: Of the tokens, by the full model, `(tokens,)`.
    """

    scored: Scored
    nll: Tensor
    full_nll: Tensor


@torch.no_grad()
def score_tokens(network: DecoderNetwork, data: Any, device: torch.device) -> TokenScores:
    """Read the validation tokens with all exits, all layers run."""
    predictions, scores, nll, full, full_nll = [], [], [], [], []
    for batch in tracked(data.loader("val"), "reading validation texts with all exits"):
        features, labels = data.transfer_batch_to_device(batch, device, 0)
        outputs = network(features)
        own = network.full_logits(features)
        full.append(own.argmax(-1).cpu())
        full_nll.append(F.cross_entropy(own.float(), labels, reduction="none").cpu())
        predictions.append(outputs.logits.argmax(-1).cpu())
        scores.append(outputs.scores.cpu())
        index = labels[:, None, None].expand(-1, network.num_exits, 1)
        nll.append(-outputs.logits.float().log_softmax(-1).gather(2, index).squeeze(2).cpu())
    tokens, reference = torch.cat(predictions), torch.cat(full)
    always = torch.ones(len(tokens), dtype=torch.bool)
    scored = Scored(tokens, torch.cat(scores), tokens == reference[:, None], network.costs.fractions(), always)
    return TokenScores(scored, torch.cat(nll), torch.cat(full_nll))


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
        self.gate, self.policy = decider(name, network.num_exits - 1, own.cpu())
        self.network = network if self.gate is None else network.with_gate(self.gate)
        self.scored, self.nll, self.full_nll = score_tokens(self.network, data, device)
        self.chosen_on = replace(chosen_on, samples=len(self.scored.scores))
        self.shares: dict[str, list[float]] = {}
        self._full: list[Row] = []

    def point(self, wish: str, value: float) -> OperatingPoint:
        """The point that a wish asks for; an `UnmetError` where no setting meets it."""
        got: dict[str, float] = {}
        if wish == "budget":
            policy = policy_for_budget(self.policy, self.scored, value, dearest=self.wishes.dearest)
        elif wish == "max-disagreement":
            policy = self.within_disagreement(value)
        elif wish == "max-perplexity-increase":
            policy = self.within_perplexity(value)
        elif wish == "max-rouge-drop":
            policy, got["rougeL_full"] = self.within_rouge(value)
        else:
            policy, got["rougeL_full"] = self.certified(value, self.wishes.delta)
        exits, right = self.scored.exits(policy), self.scored.right(policy)
        nll = gather_exits(self.nll, exits).double().mean() - self.full_nll.double().mean()
        layers = torch.tensor(self.network.costs.stages_run, dtype=torch.float64)[exits].mean().item()
        got |= {
            "agreement": right.double().mean().item(),
            "agreement_se": standard_error(right, self.data.table("val").texts),
            "perplexity_increase": 100 * (math.exp(nll.item()) - 1),
            "layers_fraction": layers / self.network.backbone.num_stages,
            "macs_fraction": self.scored.cost(policy),
        }
        self.shares[point_name(self.name, wish, value)] = choice_shares(exits, self.network.num_exits).tolist()
        return OperatingPoint(policy, self.gate, self.wishes.asked(wish, value), got, chosen_on=self.chosen_on)

    def within_disagreement(self, share: float) -> Policy:
        """The cheapest setting that changes at most a share of the full model's tokens."""
        try:
            return policy_for_accuracy(self.policy, self.scored, 100 * share)
        except UnmetError as error:
            raise UnmetError("max-disagreement", share, error.problem) from error

    def within_perplexity(self, percent: float) -> Policy:
        """The cheapest setting whose perplexity of the full model's text is at most some percent above its own."""
        most = self.full_nll.double().mean() + math.log1p(percent / 100) + 1e-9
        swept = Sweep(self.policy, self.scored)
        keeping = (swept.means(self.nll) <= most).nonzero()
        if not len(keeping):
            raise UnmetError(
                "max-perplexity-increase", percent, "no setting of the policy keeps it on the validation split"
            )
        return swept.turned(int(keeping[0]))

    def within_rouge(self, points: float) -> tuple[Policy, float]:
        """The cheapest setting before the first whose texts' mean ROUGE-L is too low, and that ROUGE-L."""
        chosen = None
        for candidate in spread(self.policy, self.scored):
            distance = self.distances(candidate).mean().item()
            if 100 * distance > points:
                break
            chosen = candidate, 1 - distance
        if chosen is None:
            raise UnmetError("max-rouge-drop", points, "no setting of the policy keeps it on the validation split")
        return chosen

    def certified(self, risk: float, delta: float) -> tuple[Policy, float]:
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
        for candidate in spread(self.policy, self.scored.rows(torch.isin(table.texts, order[:cut]))):
            distances = self.distances(candidate)[order[cut:]]
            if betting_p_value(distances, risk, delta) > delta:
                break
            chosen = candidate, 1 - distances.mean().item()
        if chosen is None:
            raise UnmetError("risk", risk, "no setting can be certified; allow more risk or a larger delta")
        return chosen

    @torch.no_grad()
    def distances(self, policy: Policy) -> Tensor:
        """1 - ROUGE-L of every validation prompt's text against the full model's, `(prompts,)`."""
        data = self.data
        prompts = data.prompts("val")
        batches = list(split_batches(len(prompts), data.text_batch_size))
        if not self._full:
            full = full_executor(self.network)
            work = tracked(batches, "generating with the full model")
            self._full = [row for batch in work for row in generated_rows(full, prompts, batch, data.decode)]
        routed = RoutedExecutor(self.network, policy.to(self.device))
        work = tracked(batches, "generating with a setting of the policy")
        rows = [row for batch in work for row in generated_rows(routed, prompts, batch, data.decode)]
        policy.cpu()
        pairs = zip(rows, self._full, strict=True)
        return torch.tensor([1 - overlap(row["text"], full["text"]) for row, full in pairs])


def spread(policy: Policy, scored: Scored) -> list[Policy]:
    """At most `CANDIDATES` settings, from the dearest to the cheapest, of even steps in mean cost."""
    settings = candidates(policy, scored)
    costs = torch.tensor([scored.cost(setting) for setting in settings])
    levels = torch.linspace(float(costs.max()), float(costs.min()), CANDIDATES)
    return [settings[place] for place in dict.fromkeys((costs - level).abs().argmin().item() for level in levels)]
