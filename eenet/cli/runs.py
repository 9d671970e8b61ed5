"""Opening a finished run: its routine with the trained weights, its data, and what its exits say of a split."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from datamodules import SplitData
from eenet.cli.lightning import EenetCLI
from eenet.errors import UserError
from lightning_modules import ExitRoutine
from lightning_modules.checkpoints import last_checkpoint


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Run folder.
        model: The routine in evaluation mode, on the device that the run's trainer chooses.
        data: Its data.
        device: That device.
    """

    folder: Path
    model: ExitRoutine
    data: SplitData
    device: torch.device

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return last_checkpoint(self.folder)


def open_run(folder: str) -> Run:
    """Open the run of a folder.

    Raises:
        UserError: The folder holds no finished run.
    """
    config, checkpoint = Path(folder, "config.yaml"), last_checkpoint(folder)
    for path in (config, checkpoint):
        if not path.is_file():
            raise UserError("run", folder, f"there is no {path}; `eenet fit` makes a run")
    values = yaml.safe_load(config.read_text())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "callbacks": None}
    trainer = {**values["trainer"], **quiet, "devices": 1, "strategy": "auto"}
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    cli = EenetCLI(args={"model": values["model"], "data": values["data"], "trainer": trainer}, run=False)
    model, device = cli.model, cli.trainer.strategy.root_device
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.on_load_checkpoint(saved)
    model.load_state_dict(saved["state_dict"])
    data = cli.datamodule
    data.prepare_data()
    data.setup("validate")
    return Run(Path(folder), model.to(device).eval(), data, device)


@torch.no_grad()
def exit_logits(run: Run, split: str) -> tuple[Tensor, Tensor]:
    """All exits' logits on a split, and its labels.

    Returns:
        Float32 `(samples, exits, classes)` and int64 `(samples,)`, on the CPU.
    """
    logits, labels = [], []
    for batch in run.data.loader(split):  # type: ignore[arg-type]
        inputs, classes = run.data.transfer_batch_to_device(batch, run.device, 0)
        network = run.model.network
        logits.append(network.exit_logits(network.extract(inputs)).float().cpu())
        labels.append(classes.cpu())
    return torch.cat(logits), torch.cat(labels)
