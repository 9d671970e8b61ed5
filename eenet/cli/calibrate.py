"""`eenet calibrate RUN`: operating points, temperatures and conformal sets from the validation split of a run."""

from typing import Any, Literal, get_args

import torch
from rich.table import Table
from torch import Tensor

from eenet.calibration import (
    Logits,
    OperatingPoint,
    Quantiles,
    Scored,
    check_budget,
    conformal_quantiles,
    cost_of,
    fit_schedule,
    fit_scheduler,
    fit_temperatures,
    policy_for_accuracy,
    policy_for_budget,
    policy_for_risk,
    read_exits,
    standard_error,
)
from eenet.calibration.points import point_name
from eenet.cli.calibrate_decoder import WISHES as DECODER_WISHES
from eenet.cli.calibrate_decoder import calibrate_decoder
from eenet.cli.calibrate_paths import WISH as PATH_WISH
from eenet.cli.calibrate_paths import calibrate_paths
from eenet.cli.deciders import decider
from eenet.cli.parsing import Parser
from eenet.cli.runs import Run, add_checkpoint, exit_logits, open_run
from eenet.cli.seen import check_unseen
from eenet.cli.wishes import MODES, ON_VALIDATION, RULES, Granted, Wishes, grant, names, numbers
from eenet.decoding import DecoderNetwork
from eenet.errors import UnmetError, UserError
from eenet.metrics import choice_shares
from eenet.policies import Policy, RandomExits
from eenet.quantization import QuantizedBackbone, QuantizedNetwork, bitops, bitops_profile
from eenet.reporting import gather_exits, make_console
from lightning_modules.choosing import warn_nobody_leaves

PolicyName = Literal["own", "max_probability", "entropy", "margin", "patience", "scheduler", "random"]
"""What decides: the run's own gates and policy, or a baseline that needs the exits' logits only."""

WISHES = ("budget", "budget-macs", "max-accuracy-drop", "risk")
"""What can be asked of a classifier."""

BUDGETS = ("budget", "budget-macs", PATH_WISH)
"""Wishes for a mean cost."""

ASSUMPTION = (
    "The certificate holds if later samples are exchangeable with the validation split (drawn from the same source, "
    "independently of it) and that split had no part in training; early stopping on it weakens this."
)


def main(args: list[str]) -> None:
    """Run `eenet calibrate` with some arguments.

    Raises:
        UserError: Wrong arguments, or no such run.
        SystemExit: With status 1 if the validation split cannot meet a wish; points that meet the others are written.
    """
    parser = Parser(prog="eenet calibrate", description="Choose operating points on the validation split.")
    parser.add_argument("run", type=str, help="run folder")
    add_checkpoint(parser)
    parser.add_argument("--budget", type=str, default="", help="fractions of the full MACs in (0, 1], as 0.3,0.5")
    parser.add_argument("--budget-macs", type=str, default="", help="mean MACs per sample, as 1e7,2e7")
    parser.add_argument("--budget-bitops", type=str, default="", help="quantized: fractions of the BitOPs, as 0.05,0.1")
    parser.add_argument("--max-accuracy-drop", type=str, default="", help="points of accuracy below the full network")
    parser.add_argument("--max-disagreement", type=str, default="", help="decoders: share of other tokens, as 0.1")
    parser.add_argument("--max-perplexity-increase", type=str, default="", help="decoders: percent, as 5,10")
    parser.add_argument("--max-rouge-drop", type=str, default="", help="decoders: points of ROUGE-L, as 10; generates")
    parser.add_argument(
        "--risk",
        type=str,
        default="",
        help="excess error over the full network to certify, as 0.02; decoders: mean 1 - ROUGE-L to the full text",
    )
    parser.add_argument("--delta", type=float, default=0.1, help="probability that a certificate is wrong")
    parser.add_argument("--alpha", type=str, default="0.1", help="miscoverage of the conformal sets, as 0.1,0.05")
    parser.add_argument(
        "--conformal", type=str, default=",".join(Wishes.modes), help="whose quantiles, some of " + ",".join(MODES)
    )
    parser.add_argument(
        "--quantile",
        type=str,
        default=Wishes.rule,
        help="of the conformal sets: jei_dnn, the paper's, or textbook, one order statistic less, and whole sets where "
        "an exit or class has too few samples",
    )
    parser.add_argument(
        "--dearest", action="store_true", help="meet budgets by spending them, not by the most accurate setting within"
    )
    policies = [*get_args(PolicyName), "saturation"]
    parser.add_argument("--policy", type=str, default="own", help=", ".join(policies) + " (decoders)")
    options = parser.parse_args(args)
    for field, known in (("policy", policies), ("quantile", RULES)):
        if options[field] not in known:
            raise UserError(field, options[field], f"must be one of {', '.join(known)}")
    fields = dict.fromkeys((*WISHES, PATH_WISH, *DECODER_WISHES))
    wishes = Wishes(
        {field: numbers(field, options[field.replace("-", "_")]) for field in fields},
        options.delta,
        numbers("alpha", options.alpha),
        names("conformal", options.conformal, MODES),
        options.quantile,
        options.dearest,
    )
    if not list(wishes):
        raise UserError("budget", "", "nothing is asked for; give --budget, --max-accuracy-drop or --risk")
    run = open_run(options.run, checkpoint=options.ckpt_path)
    check_unseen(run)
    if isinstance(run.model.network, DecoderNetwork):
        granted = calibrate_decoder(run, options.policy, wishes)
    elif isinstance(run.model.network, QuantizedNetwork):
        granted = calibrate_paths(run, options.policy, wishes)
    else:
        granted = calibrate(run, options.policy, wishes)
    granted.end()


def calibrate(run: Run, policy: PolicyName, wishes: Wishes) -> Granted:
    """Choose points and add them to the run's calibration file; a point of the same name is replaced.

    Args:
        run: The run.
        policy: What decides.
        wishes: Some of `WISHES`, and of budgets in BitOPs where the backbone is quantized.

    Raises:
        UserError: The validation split is the test split, a wish or policy is for decoders, or a budget is above all
            that the network costs.
    """
    if policy not in get_args(PolicyName):
        raise UserError("policy", policy, "is for runs that trained exits on a decoder")
    if not isinstance(run.model.network.backbone, QuantizedBackbone):
        wishes.require((*WISHES, *DECODER_WISHES), "is for runs of QuEE or on a quantized backbone")
    wishes.require((*WISHES, PATH_WISH), "is for runs that trained exits on a decoder")
    if policy == "scheduler" and wishes.dearest:
        raise UserError("dearest", True, "the scheduler learns thresholds for a budget; leave it out")
    if policy == "random":
        wishes.require(BUDGETS, "random routing takes a budget's exit fractions and has no other wish")
    full = run.model.network.costs.full
    for wish, value in wishes:
        if wish == "budget-macs" and value > full:
            raise UserError(wish, value, f"is more than the full network's {full:g}; ask for at most those")
        if wish == PATH_WISH:
            check_budget(value, wish)
    if run.data.fingerprint("val") == run.data.fingerprint("test"):
        raise UserError(
            "data", run.data.name, "its validation split is its test split; operating points need their own"
        )
    if policy in ("own", "random") and (why := run.model.untrained) is not None:
        raise UserError("policy", policy, f"{why}; {run.model.remedy(run.folder, run.checkpoint)}")
    logits, labels = exit_logits(run, "val")
    temperatures = fit_temperatures(logits, labels)
    chooser = Chooser(run, logits, labels, policy, wishes)
    granted = grant(policy, wishes, chooser.point)
    report(granted.points, len(labels))
    granted.write(run, len(labels), temperatures)
    for line in fallback_lines(granted.points):
        print(line)
    if any("risk" in point.asked for point in granted.points.values()):
        print(ASSUMPTION)
    granted.unmet += chooser.left_out
    return granted


class Chooser:
    """Chooses points of one policy on the validation split.

    Args:
        run: The run.
        logits: Of all exits on the validation split, `(samples, exits, classes)`.
        labels: `(samples,)`.
        policy: What decides.
        wishes: What is asked for.

    Attributes:
        left_out: Why modes of conformal sets are left out.
    """

    def __init__(self, run: Run, logits: Logits, labels: Tensor, policy: PolicyName, wishes: Wishes) -> None:
        network = run.model.network.cpu()
        self.name, self.labels, self.wishes = policy, labels, wishes
        self.num_classes = network.backbone.num_classes
        own = next(iter(run.model.policies().values()))
        self.gate, self.policy = decider(policy, network.num_exits - 1, own, lambda: fit_scheduler(logits, labels))
        network = network if self.gate is None else network.with_gate(self.gate)
        self.costs = network.costs
        known = read_exits(logits, labels, network.gate)
        correct = known.predictions == labels.unsqueeze(1)
        self.scored = Scored(known.predictions, known.scores, correct, self.costs.fractions())
        self.true_scores = known.true_scores
        self.chosen_on = run.chosen_on(len(labels))
        self.quantized = isinstance(network.backbone, QuantizedBackbone)
        self.bitops = torch.tensor(bitops_profile(network).cumulative).double() / bitops(self.costs.full)
        self.left_out: list[UnmetError] = []

    def point(self, wish: str, value: float) -> OperatingPoint:
        """The point that a wish asks for.

        Raises:
            UnmetError: No setting meets it.
        """
        chosen = self.choose(wish, value)
        exits = self.scored.exits(chosen)
        right = gather_exits(self.scored.correct, exits)
        got = {
            "accuracy": right.double().mean().item(),
            "accuracy_se": standard_error(right),
            "macs_fraction": cost_of(exits, self.scored.fractions),
        }
        if self.quantized:
            got["bitops_fraction"] = cost_of(exits, self.bitops)
        warn_nobody_leaves({point_name(self.name, wish, value): choice_shares(exits, self.costs.num_exits).tolist()})
        asked = self.wishes.asked(wish, value)
        return OperatingPoint(chosen, self.gate, asked, got, self.conformal(exits), self.chosen_on)

    def conformal(self, exits: Tensor) -> dict[tuple[str, float], Quantiles]:
        """Quantiles by mode and miscoverage, without those that need more samples than there are."""
        found: dict[tuple[str, float], Quantiles] = {}
        rule, labels, classes = self.wishes.rule, self.labels, self.num_classes
        for alpha in self.wishes.alphas:
            for mode in self.wishes.modes:
                try:
                    found[mode, alpha] = conformal_quantiles(
                        self.true_scores, exits, alpha, mode, rule, labels, classes
                    )
                except UnmetError as error:
                    remedy = "give more samples, a larger alpha or --quantile textbook"
                    self.left_out.append(UnmetError("alpha", alpha, f"{error.problem} ({mode}); {remedy}"))
        return found

    def choose(self, wish: str, value: float) -> Policy:
        """The policy that meets a wish.

        Raises:
            UnmetError: No setting does.
        """
        if wish in BUDGETS:
            budget = value / self.costs.full if wish == "budget-macs" else value
            scored = self.scored._replace(fractions=self.bitops) if wish == PATH_WISH else self.scored
            if self.name == "scheduler":
                return fit_schedule(scored, budget)
            chosen = policy_for_budget(self.policy, scored, budget, wish, self.wishes.dearest)
            return chosen if self.name != "random" else random_like(chosen, scored)
        if wish == "max-accuracy-drop":
            return policy_for_accuracy(self.policy, self.scored, value)
        return policy_for_risk(self.policy, self.scored, value, self.wishes.delta)


def random_like(policy: Policy, scored: Scored) -> RandomExits:
    """Random routing at the exit fractions that a policy has on the validation split."""
    return RandomExits(choice_shares(scored.exits(policy), len(scored.fractions)).tolist())


def report(points: dict[str, OperatingPoint], samples: int) -> None:
    """Print what was chosen."""
    if not points:
        return
    table = Table("point", "asked", "validation accuracy %", "validation MACs %", title=f"{samples} validation samples")
    for name, point in points.items():
        asked = ", ".join(f"{key} {value:g}" for key, value in point.asked.items())
        accuracy, error = 100 * point.got["accuracy"], 100 * point.got["accuracy_se"]
        table.add_row(name, asked, f"{accuracy:.2f} ± {error:.2f}", f"{100 * point.got['macs_fraction']:.1f}")
    make_console().print(table)
    print(ON_VALIDATION)


def fallback_lines(points: dict[str, OperatingPoint]) -> list[str]:
    """For each kind of conformal sets a line that says whose quantiles had too few samples of their own."""
    lines = []
    for mode, alpha in dict.fromkeys(key for point in points.values() for key in point.conformal):
        few = {
            name: point.conformal[mode, alpha].fallbacks
            for name, point in points.items()
            if (mode, alpha) in point.conformal and point.conformal[mode, alpha].fallbacks
        }
        if few:
            rows = [row for rows in few.values() for row in rows]
            whole = rows[0]["instead"] == "whole set"
            effect = "their sets hold every class" if whole else "quantiles of all samples, no coverage promised"
            text = "; ".join(f"{name}: {_few(rows)}" for name, rows in few.items())
            lines.append(f"conformal {mode}, alpha {alpha:g}: too few samples, so {effect} ({text})")
    return lines


def _few(rows: list[dict[str, Any]], most: int = 5) -> str:
    kinds = [next((f"{kind} {row[kind]} has " for kind in ("exit", "class") if kind in row), "") for row in rows]
    said = [f"{kind}{row['samples']}" for kind, row in zip(kinds, rows, strict=True)]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")
