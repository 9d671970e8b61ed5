"""What `eenet fit` and `test` show while they work: one line of progress, and what of Lightning's words helps."""

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import BatchesProcessedColumn, CustomBarColumn
from rich.console import Console
from rich.progress import ProgressColumn, TextColumn, TimeRemainingColumn

USELESS = (
    "TPU available",
    "💡 Tip",
    "Loading `train_dataloader`",
    "`Trainer.fit` stopped: `max_epochs",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)
"""How Lightning's messages begin that tell a user of early exits nothing."""

LOSSES = tuple(f"train/loss/{of}" for of in ("inference_modules", "warmup", "network", "backbone"))
SHOWN = {
    "loss": ("{:.3f}", *LOSSES, "train/loss", "val/loss"),
    "accuracy": ("{:.1%}", "val/accuracy"),
    "MACs": ("{:.1%}", "val/macs_fraction"),
}
"""What the line says: how a figure is written, and the metrics behind it, of which the first that is known counts."""


class ProgressLine(RichProgressBar):
    """Epoch, bar, batches, time left, loss, accuracy and cost of the principal operating point, within 80 columns."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=20, console_kwargs=None if Console().is_terminal else {"width": 100})

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """All but the metrics, which come last."""
        theme = self.theme
        return [
            TextColumn("{task.description}"),
            CustomBarColumn(
                bar_width=10,
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=theme.batch_progress),
            TimeRemainingColumn(compact=True),
        ]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Those of `SHOWN` that are known by now."""
        known, shown = trainer.callback_metrics, {}
        for name, (text, *metrics) in SHOWN.items():
            for value in [known[metric].item() for metric in metrics if metric in known][:1]:
                shown[name] = text.format(value)
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        return f"epoch {current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")


def drop_useless() -> None:
    """Keep Lightning's advertisements, and lines on devices that nobody asked for, from the terminal."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_helps)


def _helps(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(USELESS)
