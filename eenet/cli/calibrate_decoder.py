"""`eenet calibrate RUN` for a decoder's exits: operating points by what they change in the full model's text."""

import math
from array import array
from typing import NamedTuple, cast

import torch
from rich.table import Table
from torch import Tensor

from datamodules import Continuations
from eenet.calibration import (
    OperatingPoint,
    Scored,
    Sweep,
    Temperatures,
    betting_p_value,
    check_samples,
    content_order,
    policy_for_accuracy,
    policy_for_budget,
    standard_error,
)
from eenet.calibration.points import point_name
from eenet.calibration.search import candidates
from eenet.cli.deciders import decider
from eenet.cli.runs import Run
from eenet.cli.wishes import ON_VALIDATION, Granted, Wishes, grant
from eenet.decoding import DecoderNetwork, RoutedExecutor
from eenet.decoding.judging import Row, full_executor, generated_rows, overlap, split_batches
from eenet.errors import UnmetError, UserError
from eenet.metrics import choice_shares
from eenet.policies import Policy
from eenet.reporting import gather_exits, make_console
from lightning_modules.choosing import warn_nobody_leaves

WISHES = ("budget", "max-disagreement", "max-perplexity-increase", "max-rouge-drop", "risk")
"""What can be asked of a decoder's exits."""

POLICIES = ("own", "max_probability", "entropy", "margin", "saturation", "patience")
"""What can decide."""

CANDIDATES = 10
"""Settings that are generated with, from the dearest to the cheapest, until one is not good enough."""

TEACHER_FORCED = (
    "Agreement and perplexity are those of tokens that read the full model's keys and values, as generation with "
    "`--fill recompute` has them; `--fill project`, the default, approximates them. ROUGE-L is of generated texts."
)


def calibrate_decoder(run: Run, policy: str, wishes: Wishes) -> Granted:
    """Choose points and add them to the run's calibration file; a point of the same name is replaced.

    Temperatures and conformal sets are for classifiers; the file holds temperatures of 1.

    Args:
        run: The run.
        policy: What decides, one of `POLICIES`.
        wishes: Some of `WISHES`.

    Raises:
        UserError: A wish or policy for classifiers.
    """
    if policy not in POLICIES:
        raise UserError("policy", policy, f"must be one of {', '.join(POLICIES)} for a decoder")
    wishes.require(WISHES, f"is for classifiers; a decoder's exits take {', '.join(WISHES)}")
    if policy == "own" and (why := run.model.untrained) is not None:
        raise UserError("policy", policy, f"{why}; {run.model.remedy(run.folder)}")
    chooser = TokenChooser(run, policy, wishes)
    granted = grant(policy, wishes, chooser.point)
    tokens = len(chooser.scored.scores)
    report(granted.points, tokens)
    granted.write(run, tokens, Temperatures.none(run.model.network.num_exits))
    return granted


class TokenScores(NamedTuple):
    """What the validation tokens say of every exit.

    Attributes:
        scored: An exit is right where its most likely token is the full model's.
        nll: Of the tokens, in nats, `(tokens, exits)`.
    """

    scored: Scored
    nll: Tensor


@torch.no_grad()
def score_tokens(run: Run, network: DecoderNetwork) -> TokenScores:
    """Read the validation tokens with all exits, all layers run."""
    predictions, scores, nll = [], [], []
    for batch in run.data.loader("val"):
        features, labels = run.data.transfer_batch_to_device(batch, run.device, 0)
        outputs = network(features)
        predictions.append(outputs.logits.argmax(-1).cpu())
        scores.append(outputs.scores.cpu())
        index = labels[:, None, None].expand(-1, network.num_exits, 1)
        nll.append(-outputs.logits.float().log_softmax(-1).gather(2, index).squeeze(2).cpu())
    tokens = torch.cat(predictions)
    scored = Scored(tokens, torch.cat(scores), tokens == tokens[:, -1:], network.costs.fractions())
    return TokenScores(scored, torch.cat(nll))


class TokenChooser:
    """Chooses points of one policy on the validation prompts.

    Args:
        run: The run.
        policy: What decides.
        wishes: What is asked for.
    """

    def __init__(self, run: Run, policy: str, wishes: Wishes) -> None:
        self.name, self.run, self.data, self.wishes = policy, run, cast(Continuations, run.data), wishes
        network = cast(DecoderNetwork, run.model.network)
        own = next(iter(run.model.policies().values())).cpu()
        self.gate, self.policy = decider(policy, network.num_exits - 1, own)
        self.network = network if self.gate is None else cast(DecoderNetwork, network.with_gate(self.gate))
        self.scored, self.nll = score_tokens(run, self.network)
        self._full: list[Row] = []

    def point(self, wish: str, value: float) -> OperatingPoint:
        """The point that a wish asks for.

        Raises:
            UnmetError: No setting meets it.
        """
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
        nll = gather_exits(self.nll, exits).double().mean() - self.nll[:, -1].double().mean()
        layers = torch.tensor(self.network.costs.stages_run, dtype=torch.float64)[exits].mean().item()
        got |= {
            "agreement": right.double().mean().item(),
            "agreement_se": standard_error(right, self.data.table("val").texts),
            "perplexity_increase": 100 * (math.exp(nll.item()) - 1),
            "layers_fraction": layers / self.network.backbone.num_stages,
            "macs_fraction": self.scored.cost(policy),
        }
        shares = choice_shares(exits, self.network.num_exits).tolist()
        warn_nobody_leaves({point_name(self.name, wish, value): shares})
        chosen_on = self.run.chosen_on(len(self.scored.scores))
        return OperatingPoint(policy, self.gate, self.wishes.asked(wish, value), got, chosen_on=chosen_on)

    def within_disagreement(self, share: float) -> Policy:
        """The cheapest setting that changes at most a share of the full model's tokens."""
        try:
            return policy_for_accuracy(self.policy, self.scored, 100 * share)
        except UnmetError as error:
            raise UnmetError("max-disagreement", share, error.problem) from error

    def within_perplexity(self, percent: float) -> Policy:
        """The cheapest setting whose perplexity of the full model's text is at most some percent above its own."""
        most = self.nll[:, -1].double().mean() + math.log1p(percent / 100) + 1e-9
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
            self._full = [row for batch in batches for row in generated_rows(full, prompts, batch, data.decode)]
        routed = RoutedExecutor(self.network, policy.to(self.run.device))
        rows = [row for batch in batches for row in generated_rows(routed, prompts, batch, data.decode)]
        policy.cpu()
        pairs = zip(rows, self._full, strict=True)
        return torch.tensor([1 - overlap(row["text"], full["text"]) for row, full in pairs])


def spread(policy: Policy, scored: Scored) -> list[Policy]:
    """At most `CANDIDATES` settings, from the dearest to the cheapest, of even steps in mean cost."""
    settings = candidates(policy, scored)
    costs = torch.tensor([scored.cost(setting) for setting in settings])
    levels = torch.linspace(float(costs.max()), float(costs.min()), CANDIDATES)
    return [settings[place] for place in dict.fromkeys((costs - level).abs().argmin().item() for level in levels)]


def report(points: dict[str, OperatingPoint], tokens: int) -> None:
    """Print what was chosen."""
    if not points:
        return
    headings = ("agreement %", "perplexity +%", "ROUGE-L, full text %", "layers %", "MACs %")
    table = Table("point", "asked", *headings, title=f"{tokens} validation tokens")
    for name, point in points.items():
        asked, got = ", ".join(f"{key} {value:g}" for key, value in point.asked.items()), point.got
        rouge = f"{100 * got['rougeL_full']:.1f}" if "rougeL_full" in got else ""
        agreement = f"{100 * got['agreement']:.1f} ± {100 * got['agreement_se']:.1f}"
        shares = [f"{100 * got[key]:.1f}" for key in ("layers_fraction", "macs_fraction")]
        table.add_row(name, asked, agreement, f"{got['perplexity_increase']:.1f}", rouge, *shares)
    make_console().print(table)
    print(ON_VALIDATION)
    print(TEACHER_FORCED)
