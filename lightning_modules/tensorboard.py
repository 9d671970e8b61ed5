"""What a run shows in TensorBoard beside its scalars: charts, figures, curves, configuration and hyperparameters."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from eenet.reporting import exits_over_training_figure
from eenet.runs import flatten
from lightning_modules.routine import ExitRoutine

HPARAMS = "hparams"
"""Folder inside the run's of the events for the HPARAMS tab.

TensorBoard takes every scalar beside a run's hyperparameters for a metric; there, these are the final ones alone.
"""

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece", "macs_fraction")
"""Figures of the principal operating point in the HPARAMS tab."""

PAUSE = 30.0
"""Seconds of training without figures, from its start or from the validation whose figures were drawn last."""

_EXITS = r"(\d+_bits/)?exit_\d+$"
_ROUTED = r"(?!exit_)[^/]+$"

LAYOUT = {
    "Training": {"loss of each phase": ["Multiline", ["train/loss/"]]},
    "Exits": {
        "accuracy of each exit": ["Multiline", [f"val/accuracy/{_EXITS}"]],
        "balanced accuracy of each exit": ["Multiline", [f"val/balanced_accuracy/{_EXITS}"]],
        "NLL of each exit (nats)": ["Multiline", [f"val/nll/{_EXITS}"]],
    },
    "Routed": {
        "accuracy": ["Multiline", [f"val/accuracy/{_ROUTED}"]],
        "balanced accuracy": ["Multiline", [f"val/balanced_accuracy/{_ROUTED}"]],
        "macro F1": ["Multiline", [f"val/macro_f1/{_ROUTED}"]],
        "mean MACs (fraction of the full network)": ["Multiline", [f"val/macs_fraction/{_ROUTED}"]],
        "share leaving at each exit": ["Multiline", ["val/share_leaving/"]],
    },
    "Calibration": {
        "ECE of each exit": ["Multiline", [f"val/ece/{_EXITS}"]],
        "ECE, routed": ["Multiline", [f"val/ece/{_ROUTED}"]],
        "NLL, routed (nats)": ["Multiline", [f"val/nll/{_ROUTED}"]],
        "Brier, routed": ["Multiline", [f"val/brier/{_ROUTED}"]],
    },
}
"""Charts of the CUSTOM SCALARS tab; a chart is a list of regular expressions of tags."""


class TensorBoardReport(Callback):
    """Lays the charts out, draws the figures, and leaves the final results where runs are compared.

    A second goes into the figures of a validation, so they are drawn of the last, and before it when `PAUSE` seconds
    have passed since the training began or figures were drawn.
    """

    def __init__(self) -> None:
        self._drawn_at = float("-inf")
        self._waiting = False
        self._history: list[tuple[int, list[dict[str, Any]]]] = []

    def state_dict(self) -> dict[str, Any]:
        """What the exits were worth so far, which a continued training goes on with."""
        return {"history": self._history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._history = state_dict["history"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay the charts out."""
        self._drawn_at = time.monotonic()
        if (writer := experiment(trainer)) is not None:
            writer.add_custom_scalars(LAYOUT)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation results, or leave them to a later one."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit" and isinstance(pl_module, ExitRoutine) and pl_module.results:
            rows = [{key: row[key] for key in ("name", "accuracy", "nll")} for row in pl_module.results["exits"]]
            self._history = [seen for seen in self._history if seen[0] < trainer.global_step]
            self._history.append((trainer.global_step, rows))
        self._waiting = time.monotonic() < self._drawn_at + PAUSE
        if not self._waiting:
            self._draw(trainer, pl_module)
            self._drawn_at = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation, and add its metrics."""
        if self._waiting:
            self._draw(trainer, pl_module)
        conclude(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the figures of the test results and add their metrics."""
        if (writer := experiment(trainer)) is not None and isinstance(pl_module, ExitRoutine) and pl_module.results:
            for name in pl_module.figures:
                pixels = np.asarray(Image.open(pl_module.result_file(f"{name}.png")).convert("RGB"))
                tag, step = f"{pl_module.results['split']}/{name}", step_of(trainer, pl_module)
                writer.add_image(tag, pixels, step, dataformats="HWC")
        conclude(trainer, pl_module)

    def _draw(self, trainer: Trainer, routine: LightningModule) -> None:
        writer = experiment(trainer)
        if writer is None or not isinstance(routine, ExitRoutine) or not routine.results:
            return
        step = step_of(trainer, routine)
        for name, figure in routine.figures.items():
            writer.add_figure(f"{routine.results['split']}/{name}", figure(routine.results), step)
        if len(self._history) > 1:
            writer.add_figure("val/exits", exits_over_training_figure(self._history), step)


def experiment(trainer: Trainer) -> SummaryWriter | None:
    """The writer of the run's events, on the first process of a run that logs to TensorBoard."""
    if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
        return trainer.logger.experiment
    return None


def step_of(trainer: Trainer, routine: ExitRoutine) -> int:
    """Optimizer steps of the weights in use: the training's own, or those of the checkpoint that is tested."""
    return trainer.global_step or routine.trained_steps


def conclude(trainer: Trainer, routine: LightningModule) -> None:
    """Add the metrics of the routine's last results for the HPARAMS tab."""
    writer = experiment(trainer)
    if writer is None or not isinstance(routine, ExitRoutine) or not routine.results:
        return
    with SummaryWriter(str(Path(writer.log_dir, HPARAMS))) as metrics:
        principal = routine.results["operating_points"][0]
        for name in METRICS if principal.get("chosen", True) else ():
            metrics.add_scalar(f"{routine.results['split']}/{name}", principal[name], step_of(trainer, routine))
        _, _, session_end = hparams({}, {})
        metrics._get_file_writer().add_summary(session_end)


def show_config(logger: Logger | None, text: str) -> None:
    """Add a run's configuration as text, and its hyperparameters.

    Args:
        logger: The run's logger; only TensorBoard's takes them.
        text: The whole configuration in YAML.
    """
    if not isinstance(logger, TensorBoardLogger):
        return
    logger.experiment.add_text("config", f"```yaml\n{text}\n```")
    with SummaryWriter(str(Path(logger.log_dir, HPARAMS))) as writer:
        _, session_start, _ = hparams(hyperparameters(yaml.safe_load(text)), {})
        writer._get_file_writer().add_summary(session_start)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, float | str]:
    """What distinguishes runs: seed, epochs, precision, and all of model and data, by short names.

    Example:
        >>> model = {"class_path": "lightning_modules.JointExits", "init_args": {"tradeoff": 0.1, "joint": True}}
        >>> hyperparameters({"seed_everything": 0, "trainer": {"max_epochs": 3}, "model": model, "data": {}})
        {'seed': 0, 'max_epochs': 3, 'model': 'JointExits', 'model.tradeoff': 0.1, 'model.joint': 'true'}
    """
    trainer = {name: config["trainer"].get(name) for name in ("max_epochs", "precision")}
    chosen = {"seed": config["seed_everything"], **trainer, "model": config["model"], "data": config["data"]}
    found = ((name, value) for name, value in flatten("", chosen) if value is not None)
    return {name: value if plain(value) else json.dumps(value) for name, value in found}


def plain(value: Any) -> bool:
    """Whether TensorBoard takes a value as it is: text or a number, not a list or a truth value."""
    return isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))
