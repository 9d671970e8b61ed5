"""`eenet calibrate RUN`: operating points, temperatures and conformal sets from the validation split of a run."""

from pathlib import Path
from typing import Literal, get_args

import torch
from jsonargparse import ArgumentParser
from rich.table import Table
from torch import Tensor

from eenet.calibration import (
    Calibration,
    ConformalMode,
    OperatingPoint,
    Scored,
    check_budget,
    conformal_quantiles,
    fit_schedule,
    fit_scheduler,
    fit_temperatures,
    policy_for_accuracy,
    policy_for_budget,
    policy_for_risk,
    true_class_scores,
)
from eenet.calibration.points import CALIBRATION, point_name
from eenet.cli.calibrate_decoder import WISHES as DECODER_WISHES
from eenet.cli.calibrate_decoder import calibrate_decoder
from eenet.cli.calibrate_paths import WISH as PATH_WISH
from eenet.cli.calibrate_paths import calibrate_paths
from eenet.cli.deciders import decider
from eenet.cli.runs import Run, add_checkpoint, exit_logits, open_run
from eenet.decoding import DecoderNetwork
from eenet.errors import UserError
from eenet.files import sha256
from eenet.metrics import choice_shares
from eenet.policies import Policy, RandomExits
from eenet.quantization import QuantizedBackbone, QuantizedNetwork, bitops, bitops_profile
from eenet.reporting import gather_exits, make_console

PolicyName = Literal["own", "max_probability", "entropy", "margin", "patience", "scheduler", "random"]
"""What decides: the run's own gates and policy, or a baseline that needs the exits' logits only."""

WISHES = ("budget", "budget-macs", "max-accuracy-drop", "risk")
"""What can be asked of a classifier."""

MODES = get_args(ConformalMode)

ASSUMPTION = (
    "The certificate holds if later samples are exchangeable with the validation split (drawn from the same source, "
    "independently of it) and that split had no part in training; early stopping on it weakens this."
)


def main(args: list[str]) -> None:
    """Run `eenet calibrate` with some arguments.

    Raises:
        UserError: Wrong arguments, no such run, or a wish that the validation split cannot meet.
    """
    parser = ArgumentParser(prog="eenet calibrate", description="Choose operating points on the validation split.")
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
    names = [*get_args(PolicyName), "saturation"]
    parser.add_argument("--policy", type=str, default="own", help=", ".join(names) + " (decoders)")
    options = parser.parse_args(args)
    if options.policy not in names:
        raise UserError("policy", options.policy, f"must be one of {', '.join(names)}")
    fields = dict.fromkeys((*WISHES, PATH_WISH, *DECODER_WISHES))
    wishes = {field: numbers(field, options[field.replace("-", "_")]) for field in fields}
    for budget in wishes["budget"]:
        check_budget(budget)
    if not any(wishes.values()):
        raise UserError("budget", "", "nothing is asked for; give --budget, --max-accuracy-drop or --risk")
    alphas, run = numbers("alpha", options.alpha), open_run(options.run, checkpoint=options.ckpt_path)
    if isinstance(run.model.network, DecoderNetwork):
        calibrate_decoder(run, options.policy, wishes, options.delta)
    elif isinstance(run.model.network, QuantizedNetwork):
        calibrate_paths(run, options.policy, wishes)
    else:
        calibrate(run, options.policy, wishes, options.delta, alphas)


def calibrate(
    run: Run, policy: PolicyName, wishes: dict[str, list[float]], delta: float, alphas: list[float]
) -> Calibration:
    """Choose points and add them to the run's calibration file; a point of the same name is replaced.

    Args:
        run: The run.
        policy: What decides.
        wishes: Values of `budget`, `budget-macs`, `budget-bitops` (of a network on a quantized backbone),
            `max-accuracy-drop` and `risk`; those for decoders must be empty.
        delta: Probability that a risk certificate is wrong.
        alphas: Miscoverages of the conformal sets.

    Raises:
        UserError: The validation split is the test split, or a wish or policy is for decoders or cannot be met.
    """
    if policy not in get_args(PolicyName):
        raise UserError("policy", policy, "is for runs that trained exits on a decoder")
    for wish, values in wishes.items():
        if values and wish == PATH_WISH and not isinstance(run.model.network.backbone, QuantizedBackbone):
            raise UserError(wish, values, "is for runs of QuEE or on a quantized backbone")
        if values and wish not in (*WISHES, PATH_WISH):
            raise UserError(wish, values, "is for runs that trained exits on a decoder")
    if run.data.fingerprint("val") == run.data.fingerprint("test"):
        raise UserError(
            "data", run.data.name, "its validation split is its test split; operating points need their own"
        )
    logits, labels = exit_logits(run, "val")
    found = Calibration(sha256(run.checkpoint), len(labels), fit_temperatures(logits, labels), {})
    path = run.file(CALIBRATION)
    chooser = Chooser(run, logits, labels, policy)
    new: dict[str, OperatingPoint] = {}
    for wish, values in wishes.items():
        for value in values:
            new[point_name(policy, wish, value)] = chooser.point(wish, value, delta, alphas)
    found.points.update(new)
    found.add_to(path)
    report(new, path, found.samples, run)
    if wishes["risk"]:
        print(ASSUMPTION)
    return found


class Chooser:
    """Chooses points of one policy on the validation split.

    Args:
        run: The run.
        logits: Of all exits on the validation split, `(samples, exits, classes)`.
        labels: `(samples,)`.
        policy: What decides.
    """

    def __init__(self, run: Run, logits: Tensor, labels: Tensor, policy: PolicyName) -> None:
        network = run.model.network.cpu()
        self.name, self.true_scores = policy, true_class_scores(logits.softmax(-1), labels)
        own = next(iter(run.model.policies().values()))
        self.gate, self.policy = decider(policy, network.num_exits - 1, own, lambda: fit_scheduler(logits, labels))
        network = network if self.gate is None else network.with_gate(self.gate)
        with torch.no_grad():
            scores = network.gate(logits[:, :-1])
        predictions = logits.argmax(-1)
        self.costs = network.costs
        self.scored = Scored(predictions, scores, predictions == labels.unsqueeze(1), self.costs.fractions())
        self.quantized = isinstance(network.backbone, QuantizedBackbone)
        self.bitops = torch.tensor(bitops_profile(network).cumulative).double() / bitops(self.costs.full)

    def point(self, wish: str, value: float, delta: float, alphas: list[float]) -> OperatingPoint:
        """The point that a wish asks for."""
        chosen = self.choose(wish, value, delta)
        exits = self.scored.exits(chosen)
        conformal: dict[tuple[str, float], Tensor] = {
            (mode, alpha): conformal_quantiles(self.true_scores, exits, alpha, mode)
            for alpha in alphas
            for mode in MODES
        }
        asked = {wish: value, "delta": delta} if wish == "risk" else {wish: value}
        got = {
            "accuracy": gather_exits(self.scored.correct, exits).double().mean().item(),
            "macs_fraction": self.scored.fractions[exits].mean().item(),
        }
        if self.quantized:
            got["bitops_fraction"] = self.bitops[exits].mean().item()
        return OperatingPoint(chosen, self.gate, asked, got, conformal)

    def choose(self, wish: str, value: float, delta: float) -> Policy:
        """The policy that meets a wish."""
        if wish == "budget-macs":
            return self.choose("budget", check_budget(value / self.costs.full, "budget-macs"), delta)
        if wish in ("budget", PATH_WISH):
            scored = self.scored if wish == "budget" else self.scored._replace(fractions=self.bitops)
            if self.name == "scheduler":
                return fit_schedule(scored, value)
            chosen = policy_for_budget(self.policy, scored, value, wish)
            return chosen if self.name != "random" else random_like(chosen, scored)
        if self.name == "random":
            raise UserError("policy", self.name, f"random routing takes a budget's exit fractions, it has no {wish}")
        if wish == "max-accuracy-drop":
            return policy_for_accuracy(self.policy, self.scored, value)
        return policy_for_risk(self.policy, self.scored, value, delta)


def random_like(policy: Policy, scored: Scored) -> RandomExits:
    """Random routing at the exit fractions that a policy has on the validation split."""
    return RandomExits(choice_shares(scored.exits(policy), len(scored.fractions)).tolist())


def report(points: dict[str, OperatingPoint], path: Path, samples: int, run: Run) -> None:
    """Print what was chosen."""
    table = Table("point", "asked", "validation accuracy %", "validation MACs %", title=f"{samples} validation samples")
    for name, point in points.items():
        asked = ", ".join(f"{key} {value:g}" for key, value in point.asked.items())
        table.add_row(name, asked, f"{100 * point.got['accuracy']:.2f}", f"{100 * point.got['macs_fraction']:.1f}")
    make_console().print(table)
    print(f"calibration: {path}\nuse it with: eenet test {run.options} --point all")


def numbers(field: str, text: str) -> list[float]:
    """Numbers between commas.

    Raises:
        UserError: Something else is there.
    """
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(field, text, "must be numbers between commas, as 0.3,0.5") from error
