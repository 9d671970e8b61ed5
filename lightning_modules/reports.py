"""Where a run's results go: loggers, the terminal, `results.json` and figures in the run folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet.rank_zero import rank_zero_only
from eenet.reporting import (
    Results,
    accuracy_cost_figure,
    calibration_table,
    chosen_rows,
    conformal_table,
    exit_histogram_figure,
    make_console,
    not_chosen_lines,
    reliability_figure,
    results_table,
    save_figure,
    show,
    tell,
    widths_table,
    write_json,
)
from lightning_modules.base import Module
from lightning_modules.heading import folder_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALARS = (
    *("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece", "brier"),
    *("macs", "macs_fraction", "bitops_fraction", "stages_mean"),
)
"""Figures of a result row that are logged where it has them."""

FIGURES = {
    "accuracy_cost": accuracy_cost_figure,
    "exit_histogram": exit_histogram_figure,
    "reliability": reliability_figure,
}
"""Figures of the results by name."""


class Reports(Module):
    """Logs, prints and writes the results of a routine.

    Attributes:
        results: The last validation's or test's results, without the heading fields during validation.
        trained_steps: Optimizer steps of the training whose checkpoint was loaded.
    """

    results: Results
    trained_steps = 0

    @property
    def figures(self) -> "Mapping[str, Callable[[Results], Figure]]":
        """Draw the results, by name; in files after a test, in TensorBoard after every validation and test."""
        return FIGURES

    @property
    def data_name(self) -> str | None:
        """Name of the trainer's data set, `None` where there is no trainer or the data have no name."""
        return getattr(getattr(self._trainer, "datamodule", None), "name", None)

    @property
    def run_folder(self) -> Path:
        """Where the run's checkpoints and results lie, which no logger decides."""
        return folder_of(self.trainer).path

    def result_file(self, name: str) -> Path:
        """A file of the run folder for results of the checkpoint in use; see `eenet.runs.RunFolder.file`."""
        checkpoint = self.trainer.ckpt_path
        return folder_of(self.trainer).file(name, None if checkpoint is None else Path(checkpoint))

    def _log_results(self, split: str, principal: dict[str, Any] | None = None) -> None:
        """Log the figures of exits and chosen points, and those of the principal point, which stopping may watch.

        Those of a test are a chart of one dot each in TensorBoard, which has them in its figures and HPARAMS instead.
        """
        values: dict[str, float] = {}
        points = chosen_rows(self.results)
        for row in self.results["exits"] + points:
            name = row["name"].replace(" ", "_")
            values |= {f"{split}/{key}/{name}": row[key] for key in SCALARS if key in row}
        for row in points:
            for exit, share in enumerate(row["exit_fractions"]):
                values[f"{split}/share_leaving/{row['name']}/exit_{exit}"] = share
        principal = principal or (self.results["operating_points"][0] if points else {})
        watched = {f"{split}/{key}": principal[key] for key in ("macs_fraction", "accuracy") if key in principal}
        from lightning.pytorch.loggers import TensorBoardLogger

        charts = any(not isinstance(logger, TensorBoardLogger) for logger in self.loggers)
        logged = charts or (split != "test" and bool(self.loggers))
        self.log_dict(values, rank_zero_only=True, logger=logged)
        self.log_dict(watched, rank_zero_only=True, prog_bar=True, logger=logged)

    @rank_zero_only
    def _write_results(self) -> None:
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for name, draw in self.figures.items():
            save_figure(draw(self.results), self.result_file(f"{name}.png"))
        results = self.result_file("results.json")
        write_json(results, self.results)  # last: where it is, a sweep takes the run for tested
        tell(f"results: {results}", f"figure: {self.result_file('accuracy_cost.png')}")

    @rank_zero_only
    def _print_results(self) -> None:
        console = make_console()
        show(results_table(self.results), console=console)
        if self.results["part"]:
            tell(f"figures of a part: {self.results['part']}", console=console)
        tell(*not_chosen_lines(self.results["operating_points"]), console=console)
        if quantization := self.results.get("quantization"):
            show(widths_table(quantization["parts"]), console=console)
        if "calibrated" in self.results["exits"][0]:
            show(calibration_table(self.results), conformal_table(self.results), console=console)
