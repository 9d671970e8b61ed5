"""What `eenet fit` and `test` show while they work: one line of progress."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import BatchesProcessedColumn, CustomBarColumn
from rich.console import Console
from rich.progress import ProgressColumn, TextColumn, TimeRemainingColumn

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

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide the line, which would come once more below the results."""
        if self.progress is not None and self.test_progress_bar_id is not None:
            self.progress.update(self.test_progress_bar_id, visible=False)
        super().on_test_end(trainer, pl_module)
