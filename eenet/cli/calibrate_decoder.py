"""`eenet calibrate RUN` for a decoder's exits: operating points by what they change in the full model's text."""

import math
from typing import NamedTuple, cast

import torch
from rich.table import Table
from torch import Tensor

from datamodules import Continuations
from eenet.calibration import (
    Calibration,
    OperatingPoint,
    Scored,
    check_level,
    excess_risk_p_values,
    policy_for_accuracy,
    policy_for_budget,
)
from eenet.calibration.points import CALIBRATION, point_name
from eenet.calibration.search import candidates
from eenet.cli.deciders import decider
from eenet.cli.runs import Run
from eenet.decoding import DecoderNetwork, RoutedExecutor
from eenet.decoding.judging import Row, full_executor, generated_rows, overlap, split_batches
from eenet.errors import UserError
from eenet.files import sha256
from eenet.policies import Policy
from eenet.reporting import gather_exits, make_console

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


def calibrate_decoder(run: Run, policy: str, wishes: dict[str, list[float]], delta: float) -> Calibration:
    """Choose points and add them to the run's calibration file; a point of the same name is replaced.

    Temperatures and conformal sets are for classifiers; the file holds temperatures of 1.

    Args:
        run: The run.
        policy: What decides, one of `POLICIES`.
        wishes: Values of some of `WISHES`.
        delta: Probability that a risk certificate is wrong.

    Raises:
        UserError: A wish or policy for classifiers, or a wish that cannot be met.
    """
    if policy not in POLICIES:
        raise UserError("policy", policy, f"must be one of {', '.join(POLICIES)} for a decoder")
    for wish, values in wishes.items():
        if values and wish not in WISHES:
            raise UserError(wish, values, f"is for classifiers; a decoder's exits take {', '.join(WISHES)}")
    chooser = TokenChooser(run, policy)
    path = run.file(CALIBRATION)
    found = Calibration(sha256(run.checkpoint), len(chooser.scored.scores), torch.ones(run.model.network.num_exits), {})
    new = {
        point_name(policy, wish, value): chooser.point(wish, value, delta)
        for wish, values in wishes.items()
        for value in values
    }
    found.points.update(new)
    found.add_to(path)
    report(new, found.samples)
    print(f"calibration: {path}\nuse it with: eenet test {run.options} --point all")
    return found


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
    """

    def __init__(self, run: Run, policy: str) -> None:
        self.run, self.data = run, cast(Continuations, run.data)
        network = cast(DecoderNetwork, run.model.network)
        own = next(iter(run.model.policies().values())).cpu()
        self.gate, self.policy = decider(policy, network.num_exits - 1, own)
        self.network = network if self.gate is None else cast(DecoderNetwork, network.with_gate(self.gate))
        self.scored, self.nll = score_tokens(run, self.network)
        self._full: list[Row] = []

    def point(self, wish: str, value: float, delta: float) -> OperatingPoint:
        """The point that a wish asks for."""
        got: dict[str, float] = {}
        if wish == "budget":
            policy = policy_for_budget(self.policy, self.scored, value)
        elif wish == "max-disagreement":
            if not 0 <= value < 1:
                raise UserError(wish, value, "is a share of tokens, at least 0 and below 1")
            policy = policy_for_accuracy(self.policy, self.scored, 100 * value)
        elif wish == "max-perplexity-increase":
            policy = self.within_perplexity(value)
        elif wish == "max-rouge-drop":
            policy, got["rougeL_full"] = self.within_rouge(value)
        else:
            policy, got["rougeL_full"] = self.certified(value, delta)
        exits = self.scored.exits(policy)
        nll = gather_exits(self.nll, exits).double().mean() - self.nll[:, -1].double().mean()
        layers = torch.tensor(self.network.costs.stages_run, dtype=torch.float64)[exits].mean().item()
        got |= {
            "agreement": self.scored.right(policy).double().mean().item(),
            "perplexity_increase": 100 * (math.exp(nll.item()) - 1),
            "layers_fraction": layers / self.network.backbone.num_stages,
            "macs_fraction": self.scored.cost(policy),
        }
        asked = {wish: value, "delta": delta} if wish == "risk" else {wish: value}
        return OperatingPoint(policy, self.gate, asked, got)

    def within_perplexity(self, percent: float) -> Policy:
        """The cheapest setting whose perplexity of the full model's text is at most some percent above its own."""
        if not 0 <= percent < float("inf"):
            raise UserError("max-perplexity-increase", percent, "must be a number of percent, at least 0")
        most = self.nll[:, -1].double().mean() + math.log1p(percent / 100) + 1e-9
        for candidate in reversed(candidates(self.policy, self.scored)):
            if gather_exits(self.nll, self.scored.exits(candidate)).double().mean() <= most:
                return candidate
        raise UserError("max-perplexity-increase", percent, "no setting of the policy keeps it on the validation split")

    def within_rouge(self, points: float) -> tuple[Policy, float]:
        """The cheapest setting before the first whose texts' mean ROUGE-L is too low, and that ROUGE-L."""
        if not 0 <= points <= 100:
            raise UserError("max-rouge-drop", points, "is a number of points of ROUGE-L, from 0 to 100")
        chosen = None
        for candidate in spread(self.policy, self.scored):
            distance = self.distances(candidate).mean().item()
            if 100 * distance > points:
                break
            chosen = candidate, 1 - distance
        if chosen is None:
            raise UserError("max-rouge-drop", points, "no setting of the policy keeps it on the validation split")
        return chosen

    def certified(self, risk: float, delta: float) -> tuple[Policy, float]:
        """The cheapest certified setting, and its mean ROUGE-L on the prompts that certified it.

        The risk is the expected distance of a prompt's text from the full model's, 1 - ROUGE-L (the textual consistency
        of CALM, Schuster et al. 2022). Prompts are the samples, as tokens of one text are not independent. A tenth of
        them says which settings are compared, the others certify them.
        """
        texts = self.data.table("val").texts
        cut = (int(texts.max()) + 1) // 10
        check_level(risk, delta, int(texts.max()) + 1 - cut)
        if cut == 0:
            raise UserError("risk", risk, "needs at least 10 validation prompts; raise data.val_size")
        chosen = None
        for candidate in spread(self.policy, self.scored.rows((texts < cut).nonzero().squeeze(1))):
            distances = self.distances(candidate)[cut:]
            if excess_risk_p_values(distances.unsqueeze(0), risk, delta) > delta:
                break
            chosen = candidate, 1 - distances.mean().item()
        if chosen is None:
            raise UserError("risk", risk, "no setting can be certified; allow more risk or a larger delta")
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
    headings = ("agreement %", "perplexity +%", "ROUGE-L, full text %", "layers %", "MACs %")
    table = Table("point", "asked", *headings, title=f"{tokens} validation tokens")
    for name, point in points.items():
        asked, got = ", ".join(f"{key} {value:g}" for key, value in point.asked.items()), point.got
        rouge = f"{100 * got['rougeL_full']:.1f}" if "rougeL_full" in got else ""
        shares = [f"{100 * got[key]:.1f}" for key in ("agreement", "layers_fraction", "macs_fraction")]
        table.add_row(name, asked, shares[0], f"{got['perplexity_increase']:.1f}", rouge, *shares[1:])
    make_console().print(table)
    print(TEACHER_FORCED)
