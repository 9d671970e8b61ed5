"""`eenet compare RUN...`: runs beside each other, as a table, figures, one page and JSON."""

import shlex
from pathlib import Path

from eenet.cli.parsing import Parser
from eenet.errors import UserError
from eenet.reporting import make_console, save_figure, write_json, write_text
from eenet.reporting.compare import load_runs
from eenet.reporting.compare_curves import DEFAULT_BUDGETS, compare, parse_budgets, to_dict
from eenet.reporting.compare_figures import draw_all, svg
from eenet.reporting.compare_page import page
from eenet.reporting.compare_table import areas_sheet, points_sheet, rich_table


def main(args: list[str]) -> None:
    """Run `eenet compare` with some arguments.

    Raises:
        UserError: A run cannot be read or compared, wrong budgets, or an output folder that holds a run.
    """
    parser = Parser(
        prog="eenet compare",
        description="Compare tested runs: accuracy, calibration and cost, with mean and deviation over seeds.",
    )
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="run folder, or its results.json")
    parser.add_argument("--out", default="runs/comparison", type=str, help="folder of the figures, page and JSON")
    parser.add_argument(
        "--budgets",
        default=",".join(map(str, DEFAULT_BUDGETS)),
        type=str,
        help="LOW,HIGH: fractions of the full MACs between which the area under the accuracy/cost curve is taken",
    )
    parser.add_argument("--ckpt_path", type=str, default="last", help="whose results: last, best or a file name")
    options = parser.parse_args(args)
    budgets, out = parse_budgets(options.budgets), Path(options.out)
    if (out / "results.json").exists():
        raise UserError(
            "out", options.out, "is the folder of a run, whose figures would be overwritten; choose another"
        )
    comparison = compare(load_runs(options.runs, options.ckpt_path), budgets)
    figures = draw_all(comparison)
    for name, figure in figures.items():
        save_figure(figure, out / f"{name}.png")
    drawn = {name: svg(figure) for name, figure in figures.items()}
    write_text(out / "accuracy_cost.svg", drawn["accuracy_cost"])
    write_json(out / "comparison.json", to_dict(comparison))
    write_text(out / "index.html", page(comparison, drawn, shlex.join(["eenet", "compare", *args])))
    console = make_console()
    for sheet in (points_sheet(comparison), areas_sheet(comparison)):
        console.print(rich_table(sheet))
    print(f"page: {out / 'index.html'}")
