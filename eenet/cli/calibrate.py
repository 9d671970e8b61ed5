"""`eenet calibrate RUN`: operating points, temperatures and conformal sets from the validation split of a run."""

import sys
from collections.abc import Mapping
from typing import Any, get_args

import torch
from rich.table import Table

from eenet.calibration import Calibration, OperatingPoint, Temperatures, fit_temperatures
from eenet.calibration.chooser import Chooser, Clock, PolicyName, check_wishes
from eenet.calibration.points import CALIBRATION
from eenet.calibration.wishes import DECODER_WISHES, MODES, RULES, WISHES, Granted, Wishes, grant
from eenet.cli.clocks import check_runtime, clock_of
from eenet.cli.parsing import Parser
from eenet.cli.runs import Run, add_checkpoint, open_run, read_split
from eenet.cli.seen import check_unseen
from eenet.decoding import DecoderNetwork
from eenet.decoding.chooser import POLICIES as DECODER_POLICIES
from eenet.decoding.chooser import TokenChooser, check_token_wishes
from eenet.errors import NOT_MET, UserError, some
from eenet.files import sha256
from eenet.policies import PredictedErrors
from eenet.reporting import make_console
from eenet.tree import Tree, path_name
from lightning_modules.checkpoints import WholeCheckpoints
from lightning_modules.choosing import amend, warn_nobody_leaves

ON_VALIDATION = (
    "What a point reached (± one standard error) is on the samples that chose it among all settings of its policy, so "
    "that it is a little optimistic; `eenet test` judges it on others."
)

ASSUMPTION = (
    "The certificate holds if later samples are exchangeable with the validation split (drawn from the same source, "
    "independently of it) and that split had no part in training; early stopping on it weakens this."
)

TEACHER_FORCED = (
    "Agreement and perplexity are those of tokens that read the full model's keys and values, as generation with "
    "`--fill recompute` has them; `--fill project`, the default, approximates them. ROUGE-L is of generated texts."
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
    parser.add_argument("--budget-ms", type=str, default="", help="mean milliseconds per sample by the clock, as 0.3,1")
    parser.add_argument("--batch-size", type=int, default=1, help="of --budget-ms: samples that are routed together")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of --budget-ms")
    parser.add_argument("--runtime", type=str, default="torch", help="of --budget-ms: torch, or onnx")
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
    policies = list(dict.fromkeys((*get_args(PolicyName), *DECODER_POLICIES)))
    parser.add_argument("--policy", type=str, default="own", help=", ".join(policies) + " (decoders)")
    options = parser.parse_args(args)
    for field, known in (("policy", policies), ("quantile", RULES)):
        if options[field] not in known:
            raise UserError(field, options[field], f"must be one of {', '.join(known)}")
    fields = dict.fromkeys((*WISHES, *DECODER_WISHES))
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
    clock = None
    if wishes.values["budget-ms"]:
        check_runtime(options.runtime)
        torch.set_num_threads(options.threads)
        clock = clock_of(run, options.batch_size, options.runtime)
    granted = calibrate(run, options.policy, wishes, clock)
    for problem in dict.fromkeys(str(error) for error in granted.unmet):
        print(f"{NOT_MET}{problem}", file=sys.stderr)
    if granted.unmet:
        raise SystemExit(1)


def calibrate(run: Run, policy: PolicyName, wishes: Wishes, clock: Clock | None = None) -> Granted:
    """Choose points and add them to the run's calibration file; a point of the same name is replaced.

    Predictors that training came to no whole validation to fit are fitted first, and put into the checkpoint.

    Args:
        run: The run.
        policy: What decides.
        wishes: What is asked for.
        clock: For budgets in milliseconds.

    Raises:
        UserError: The validation split is the test split, or the run's network has no such wish or policy.
    """
    network, tokens = run.model.network, isinstance(run.model.network, DecoderNetwork)
    if tokens:
        check_token_wishes(policy, wishes)
    else:
        check_wishes(network, policy, wishes)
    if run.data.fingerprint("val") == run.data.fingerprint("test"):
        raise UserError(
            "data", run.data.name, "its validation split is its test split; operating points need their own"
        )
    if policy in ("own", "random") and (why := run.model.untrained) is not None:
        raise UserError("policy", policy, f"{why}; {run.model.remedy(run.folder, run.checkpoint)}")
    if policy == "own" and run.model.fit_on(run.batches("val"), run.split):
        amend(run.checkpoint, run.model, run.model.state_dict(), WholeCheckpoints())
    own = next(iter(run.model.policies().values()))
    chooser: Chooser | TokenChooser
    if isinstance(network, DecoderNetwork):
        chooser = TokenChooser(network, own, policy, wishes, run.data, run.device, run.chosen_on(0))
        samples, temperatures = chooser.chosen_on.samples, Temperatures.none(network.num_exits)
    else:
        split = read_split(run, "val")
        called = [network.tree.node_name(node) for node in range(len(network.tree.nodes))]
        samples, temperatures = len(split.labels), fit_temperatures(split.logits, split.labels, called)
        chooser = Chooser(network.cpu(), own, policy, wishes, split, run.chosen_on(samples), clock)
    granted = grant(policy, wishes, chooser.point)
    if granted.points:
        warn_nobody_leaves(chooser.shares)
        make_console().print(token_table(granted.points, samples) if tokens else table(granted.points, samples))
        print(ON_VALIDATION)
        if tokens:
            print(TEACHER_FORCED)
        write(run, granted.points, samples, temperatures)
    if not isinstance(network, DecoderNetwork):
        for line in fallback_lines(granted.points, network.tree):
            print(line)
        if any("risk" in point.asked for point in granted.points.values()):
            print(ASSUMPTION)
    granted.unmet += chooser.left_out
    return granted


def write(run: Run, points: Mapping[str, OperatingPoint], samples: int, temperatures: Temperatures) -> None:
    """Add points to the run's calibration file, where a point of the same name is replaced.

    Args:
        run: The run.
        points: By name.
        samples: Of the validation split.
        temperatures: Of every node.
    """
    path = run.file(CALIBRATION)
    Calibration(sha256(run.checkpoint), samples, temperatures.values, dict(points), temperatures.doubts).add_to(path)
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


def names(field: str, text: str, known: tuple[str, ...]) -> tuple[Any, ...]:
    """Some known names between commas.

    Raises:
        UserError: Another name is there, or none.
    """
    chosen = tuple(dict.fromkeys(part for part in text.split(",") if part))
    if not chosen or not set(chosen) <= set(known):
        raise UserError(field, text, f"must be some of {', '.join(known)}, between commas")
    return chosen


def table(points: Mapping[str, OperatingPoint], samples: int) -> Table:
    """What was chosen for a classifier."""
    units = {"macs_fraction": "MACs", "bitops_fraction": "BitOPs"}
    units = {key: name for key, name in units.items() if key in next(iter(points.values())).got}
    widths = {name: widths_of(point) for name, point in points.items()}
    columns = ["widths"] if any(widths.values()) else []
    costs = [f"validation {name} %" for name in units.values()]
    timed = ["ms by the clock"] if any("ms" in point.got for point in points.values()) else []
    headings = ("point", "asked", *columns, "validation accuracy %", *costs, *timed)
    found = Table(*headings, title=f"{samples} validation samples")
    for name, point in points.items():
        accuracy, error = 100 * point.got["accuracy"], 100 * point.got["accuracy_se"]
        shares = [f"{100 * point.got[key]:.1f}" for key in units]
        shares += [f"{point.got['ms']:.3g}" if "ms" in point.got else "" for _ in timed]
        found.add_row(name, asked(point), *[widths[name]] * len(columns), f"{accuracy:.2f} ± {error:.2f}", *shares)
    return found


def widths_of(point: OperatingPoint) -> str:
    """The path of a point, or where its policy begins; nothing in a network of one path."""
    if isinstance(point.policy, PredictedErrors):
        return f"from {point.policy.first_width}, lambda {point.policy.tradeoff:g}"
    return "" if point.path is None else path_name(point.path)


def asked(point: OperatingPoint) -> str:
    """What a point was chosen for."""
    return ", ".join(f"{key} {value:g}" for key, value in point.asked.items())


def token_table(points: Mapping[str, OperatingPoint], tokens: int) -> Table:
    """What was chosen for a decoder."""
    headings = ("agreement %", "perplexity +%", "ROUGE-L, full text %", "layers %", "MACs %")
    found = Table("point", "asked", *headings, title=f"{tokens} validation tokens")
    for name, point in points.items():
        got = point.got
        rouge = f"{100 * got['rougeL_full']:.1f}" if "rougeL_full" in got else ""
        agreement = f"{100 * got['agreement']:.1f} ± {100 * got['agreement_se']:.1f}"
        shares = [f"{100 * got[key]:.1f}" for key in ("layers_fraction", "macs_fraction")]
        found.add_row(name, asked(point), agreement, f"{got['perplexity_increase']:.1f}", rouge, *shares)
    return found


def fallback_lines(points: dict[str, OperatingPoint], tree: Tree) -> list[str]:
    """For each kind of conformal sets a line that says whose quantiles had too few samples of their own.

    Args:
        points: By name.
        tree: The network's, whose nodes those of points without a path are.
    """
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
            text = "; ".join(
                f"{name}: {_few(rows, tree if points[name].path is None else None)}" for name, rows in few.items()
            )
            lines.append(f"conformal {mode}, alpha {alpha:g}: too few samples, so {effect} ({text})")
    return lines


def _few(rows: list[dict[str, Any]], tree: Tree | None) -> str:
    said = []
    for row in rows:
        whose = f"class {row['class']} has " if "class" in row else ""
        if "exit" in row:
            exit = row["exit"]
            whose = f"{f'exit {exit}' if tree is None else tree.node_name(exit)} has "
        said.append(f"{whose}{row['samples']}")
    return some(said, most=5)
