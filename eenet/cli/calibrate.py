"""`eenet calibrate RUN`: operating points, temperatures and conformal sets from the validation split of a run."""

import sys

from eenet.cli.options import add_run, names, numbers
from eenet.errors import NOT_MET
from eenet.parsing.refusals import Parser

WISHES = (
    *("budget", "budget-macs", "budget-bitops", "budget-ms", "max-accuracy-drop", "risk"),
    *("max-disagreement", "max-perplexity-increase", "max-rouge-drop"),
)
MODES = "whose quantiles, some of common,per_exit,per_exit_all,per_class"
POLICIES = (
    "own, max_probability, entropy, margin, patience, stopping, stopping_stateless; "
    "classifiers: per_class, scheduler, geometric, random, stopping_recall; decoders: saturation"
)


def main(args: list[str]) -> None:
    """Run `eenet calibrate` with some arguments.

    Raises:
        UserError: Wrong arguments, or no such run.
        SystemExit: With status 1 if the validation split cannot meet a wish; points that meet the others are written.
    """
    parser = Parser(prog="eenet calibrate", description="Choose operating points on the validation split.")
    add_run(parser)
    parser.add_argument("--budget", type=str, default="", help="fractions of the full MACs in (0, 1], as 0.3,0.5")
    parser.add_argument("--budget-macs", type=str, default="", help="mean MACs per sample, as 1e7,2e7")
    parser.add_argument("--budget-bitops", type=str, default="", help="quantized: fractions of the BitOPs, as 0.05,0.1")
    parser.add_argument("--budget-ms", type=str, default="", help="mean milliseconds per sample by the clock, as 0.3,1")
    parser.add_argument("--batch-size", type=int, default=1, help="of --budget-ms: samples that are routed together")
    parser.add_argument("--threads", type=int | None, help="of --budget-ms")
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
    parser.add_argument("--conformal", type=str, default="common,per_exit,per_exit_all", help=MODES)
    parser.add_argument(
        "--quantile",
        type=str,
        default="jei_dnn",
        help="of the conformal sets: jei_dnn, the paper's, or textbook, one order statistic less, and whole sets where "
        "an exit or class has too few samples",
    )
    parser.add_argument(
        "--dearest", action="store_true", help="meet budgets by spending them, not by the most accurate setting within"
    )
    parser.add_argument("--place", action="store_true", help="drop exits without which a wish is met no worse")
    parser.add_argument("--policy", type=str, default="own", help=POLICIES)
    options = parser.parse_args(args)
    from eenet.api.calibrating import calibrate
    from eenet.cli.chosen import say

    wishes = {name.replace("-", "_"): name for name in WISHES}
    found = calibrate(
        options.run,
        **{name: numbers(wish, options[name]) for name, wish in wishes.items()},
        delta=options.delta,
        alpha=numbers("alpha", options.alpha),
        conformal=names(options.conformal),
        quantile=options.quantile,
        dearest=options.dearest,
        place=options.place,
        policy=options.policy,
        batch_size=options.batch_size,
        threads=options.threads,
        runtime=options.runtime,
        checkpoint=options.ckpt_path,
    )
    say(found)
    for problem in dict.fromkeys(map(str, found.unmet)):
        print(f"{NOT_MET}{problem}", file=sys.stderr)
    if found.unmet:
        raise SystemExit(1)
