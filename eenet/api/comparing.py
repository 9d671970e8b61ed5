"""Tested runs beside each other."""

from collections.abc import Sequence
from pathlib import Path

from eenet.api.opening import Run
from eenet.errors import UserError
from eenet.reporting import save_figure, write_json, write_text
from eenet.reporting.compare import load_runs
from eenet.reporting.compare_curves import DEFAULT_BUDGETS, Budgets, Comparison, to_dict
from eenet.reporting.compare_curves import compare as compare_results
from eenet.reporting.compare_figures import draw_all, svg
from eenet.reporting.compare_page import page


def compare(
    runs: Sequence[Run | str | Path],
    out: str | Path = "runs/comparison",
    *,
    budgets: tuple[float, float] = DEFAULT_BUDGETS,
    checkpoint: str = "last",
    told: str = "",
) -> Comparison:
    """Compare tested runs, with mean and deviation over seeds, and write figures, one page and JSON.

    Args:
        runs: Runs, their folders, or their `results.json`.
        out: Folder of what is written.
        budgets: Fractions of the full MACs between which the area under the accuracy/cost curve is taken.
        checkpoint: Whose results: `last`, `best` or a file name.
        told: What made the page, as it says.

    Raises:
        UserError: A run cannot be read or compared, or `out` holds a run.
    """
    out = Path(out)
    if (out / "results.json").exists():
        raise UserError("out", str(out), "is the folder of a run, whose figures would be overwritten; choose another")
    folders = [str(run.folder if isinstance(run, Run) else run) for run in runs]
    comparison = compare_results(load_runs(folders, checkpoint), Budgets(*budgets))
    figures = draw_all(comparison)
    for name, figure in figures.items():
        save_figure(figure, out / f"{name}.png")
    drawn = {name: svg(figure) for name, figure in figures.items()}
    write_text(out / "accuracy_cost.svg", drawn["accuracy_cost"])
    write_json(out / "comparison.json", to_dict(comparison))
    write_text(out / "index.html", page(comparison, drawn, told))
    return comparison
