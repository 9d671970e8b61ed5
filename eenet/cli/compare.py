"""`eenet compare RUN...`: runs beside each other, as a table, figures, one page and JSON."""

import shlex
from pathlib import Path

from eenet.parsing.refusals import Parser


def main(args: list[str]) -> None:
    """Run `eenet compare` with some arguments; a `UserError` where runs cannot be read or compared."""
    parser = Parser(
        prog="eenet compare",
        description="Compare tested runs: accuracy, calibration and cost, with mean and deviation over seeds.",
    )
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="run folder, or its results.json")
    parser.add_argument("--out", default="runs/comparison", type=str, help="folder of the figures, page and JSON")
    parser.add_argument(
        "--budgets",
        default="0.35,0.75",
        type=str,
        help="LOW,HIGH: fractions of the full MACs between which the area under the accuracy/cost curve is taken",
    )
    parser.add_argument("--ckpt_path", type=str, default="last", help="whose results: last, best or a file name")
    options = parser.parse_args(args)
    from eenet.api.comparing import compare
    from eenet.reporting import show
    from eenet.reporting.compare_curves import parse_budgets
    from eenet.reporting.compare_table import areas_sheet, points_sheet, rich_table
    from eenet.reporting.compare_verdict import verdict

    budgets, told = parse_budgets(options.budgets), shlex.join(["eenet", "compare", *args])
    comparison = compare(options.runs, options.out, budgets=budgets, checkpoint=options.ckpt_path, told=told)
    show(*(rich_table(sheet) for sheet in (points_sheet(comparison), areas_sheet(comparison))))
    print(*verdict(comparison), sep="\n")
    print(f"picture: {Path(options.out, 'accuracy_cost.png')}\npage: {Path(options.out, 'index.html')}")
