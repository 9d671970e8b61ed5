"""Opening a finished run: its routine with the trained weights, its data, and what its exits say of a split."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from datamodules import SplitData
from eenet.calibration import Calibration, ChosenOn, LogitFile, OperatingPoint
from eenet.cli.lightning import EenetCLI
from eenet.errors import UserError
from eenet.quantization import QuantizedNetwork
from lightning_modules import ExitRoutine
from lightning_modules.checkpoints import last_checkpoint, read_checkpoint


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Run folder.
        model: The routine in evaluation mode, on the device that the run's trainer chooses.
        data: Its data.
        device: That device.
        split: Fingerprint of the validation split, `None` where the data were not read.
    """

    folder: Path
    model: ExitRoutine
    data: SplitData
    device: torch.device
    split: str | None = None

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return last_checkpoint(self.folder)

    def chosen_on(self, samples: int) -> ChosenOn:
        """What a point is chosen on by so many samples of the run's validation split."""
        return ChosenOn(self.model.network_digest(), self.split, samples)


def open_run(folder: str, read_data: bool = True) -> Run:
    """Open the run of a folder.

    Args:
        folder: The run folder.
        read_data: Read the data of the run, without which only its transform or tokenizer can be used.

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
    saved = read_checkpoint(checkpoint, "run")
    model.on_load_checkpoint(saved)
    model.load_state_dict(saved["state_dict"])
    data = cli.datamodule
    if read_data:
        data.prepare_data()
        data.setup("validate")
    split = data.fingerprint("val") if read_data else None
    return Run(Path(folder), model.to(device).eval(), data, device, split)


@dataclass
class Chosen:
    """The operating point of a run that is put to use.

    Attributes:
        name: Of the point.
        point: The point.
        temperatures: Of every exit, `(exits,)`, where the run was calibrated.
    """

    name: str
    point: OperatingPoint
    temperatures: Tensor | None = None


def chosen_point(run: Run, name: str | None) -> Chosen:
    """A point of `eenet calibrate`, or the run's own where none is named.

    Raises:
        UserError: The run is quantized, has no such point, or it was not chosen for the run's weights and data.
    """
    if isinstance(run.model.network, QuantizedNetwork):
        raise UserError("run", str(run.folder), "its paths change bit-widths; ship one that has one precision")
    if name is None:
        chosen = Chosen(*next(iter(run.model.operating_points().items())))
    else:
        calibration = Calibration.of(run.folder, run.checkpoint, name)
        if name not in calibration.points:
            raise UserError("point", name, f"the run has {', '.join(calibration.points)}; see `eenet calibrate`")
        chosen = Chosen(name, calibration.points[name], calibration.temperatures)
    run.model.require_chosen(chosen.name, chosen.point, run.split, run.folder)
    return chosen


def class_names(data: SplitData) -> list[str] | None:
    """Names of the classes by number, `None` where the data know none."""
    return getattr(data, "class_names", None)


@torch.no_grad()
def exit_logits(run: Run, split: str) -> tuple[LogitFile, Tensor]:
    """All exits' logits on a split, in a temporary file, and its labels.

    Returns:
        Float32 `(samples, exits, classes)`, and int64 `(samples,)` on the CPU.

    Raises:
        UserError: The disk has no room for them.
    """
    loader = run.data.loader(split)  # type: ignore[arg-type]
    logits, labels = LogitFile(len(loader.dataset), run.folder), []  # type: ignore[arg-type]
    for batch in loader:
        inputs, classes = run.data.transfer_batch_to_device(batch, run.device, 0)
        network = run.model.network
        logits.append(network.exit_logits(network.extract(inputs)))
        labels.append(classes.cpu())
    return logits, torch.cat(labels)
