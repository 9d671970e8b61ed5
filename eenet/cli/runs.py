"""Opening a finished run: its routine with the trained weights, its data, and what its exits say of a split."""

import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils import _pytree as pytree

from datamodules import SplitData
from eenet.calibration import Calibration, ChosenOn, LogitFile, OperatingPoint
from eenet.calibration.chooser import Split
from eenet.cli.configs import imports
from eenet.cli.lightning import EenetCLI
from eenet.errors import UserError, said
from eenet.runs import RunFolder, check_trust, load_config, read_checkpoint
from lightning_modules import ExitRoutine


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Run folder.
        checkpoint: The checkpoint whose weights it has.
        model: The routine in evaluation mode, on the device that the run's trainer chooses.
        data: Its data.
        device: That device.
        split: Fingerprint of the validation split, `None` where the data were not read.
    """

    folder: Path
    checkpoint: Path
    model: ExitRoutine
    data: SplitData
    device: torch.device
    split: str | None = None

    def file(self, name: str) -> Path:
        """A file of the run folder that belongs to the checkpoint; see `eenet.runs.RunFolder.file`."""
        return RunFolder(self.folder).file(name, self.checkpoint)

    @property
    def options(self) -> str:
        """How `eenet test` is told which run and checkpoint: what follows the command."""
        last = self.checkpoint == RunFolder(self.folder).last
        args = ["--config", str(self.folder / "config.yaml"), *([] if last else ["--ckpt_path", str(self.checkpoint)])]
        return shlex.join(args)

    def batches(self, split: str) -> Iterator[Any]:
        """The batches of a split on the run's device."""
        for batch in self.data.loader(split):  # type: ignore[arg-type]
            yield self.data.transfer_batch_to_device(batch, self.device, 0)

    def chosen_on(self, samples: int) -> ChosenOn:
        """What a point is chosen on by so many samples of the run's validation split."""
        return ChosenOn(self.model.network_digest(), self.split, samples)


def add_checkpoint(parser: ArgumentParser) -> None:
    """Let a command that opens runs be told which checkpoint is meant."""
    parser.add_argument("--ckpt_path", type=str, default="last", help="last, best (of the run's monitor) or a file")


def open_run(folder: str, read_data: bool = True, checkpoint: str = "last") -> Run:
    """Open the run of a folder.

    Args:
        folder: The run folder.
        read_data: Read the data of the run, without which only its transform or tokenizer can be used.
        checkpoint: Which checkpoint, as for `eenet.runs.RunFolder.checkpoint`.

    Raises:
        UserError: The folder holds no finished run.
    """
    own = RunFolder(Path(folder))
    for path in (own.config, own.last) if checkpoint in ("last", "best") else (own.config,):
        if not path.is_file():
            raise UserError("run", folder, f"there is no {path}; `eenet fit` makes a run")
    file, values = own.checkpoint(checkpoint), load_config(own.config)
    if not all(isinstance(values.get(part), dict) for part in ("model", "data")):
        raise UserError("run", str(own.config), "has no `model` and `data` with their classes; `eenet fit` writes it")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "callbacks": None}
    trainer = {**values.get("trainer", {}), **quiet, "devices": 1, "strategy": "auto"}
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    saved = read_checkpoint(file, "run")
    args = {"model": values["model"], "data": values["data"], "trainer": trainer}
    with imports(check_trust(values, own.config)):
        cli = EenetCLI(args=args, run=False, saved=saved)
    model, device = cli.model, cli.trainer.strategy.root_device
    try:
        model.on_load_checkpoint(saved)
        model.load_state_dict(saved["state_dict"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem = f"does not fit the run's configuration ({said(error)})"
        raise UserError("ckpt_path", str(file), problem) from error
    data = cli.datamodule
    if read_data:
        data.prepare_data()
        data.setup("validate")
    split = data.fingerprint("val") if read_data else None
    return Run(own.path, file, model.to(device).eval(), data, device, split)


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
        UserError: The run has no such point, or it was not chosen for the run's weights and data.
    """
    if name is None:
        chosen = Chosen(*next(iter(run.model.operating_points().items())))
    else:
        calibration = Calibration.of(run.folder, run.checkpoint, name)
        if name not in calibration.points:
            raise UserError("point", name, f"the run has {', '.join(calibration.points)}; see `eenet calibrate`")
        chosen = Chosen(name, calibration.points[name], calibration.temperatures)
    run.model.require_chosen(chosen.name, chosen.point, run.split, run.folder, run.checkpoint)
    return chosen


def class_names(data: SplitData) -> list[str] | None:
    """Names of the classes by number, `None` where the data know none."""
    return getattr(data, "class_names", None)


def example(run: Run, rows: int = 3) -> Any:
    """Some validation inputs; texts are cut to whole tokens, as if all were equally long."""
    inputs = pytree.tree_map(lambda rows_: rows_[:rows], next(iter(run.data.loader("val")))[0])
    if isinstance(inputs, dict):
        inputs = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    return inputs


@torch.no_grad()
def read_split(run: Run, split: str) -> Split:
    """All nodes' logits on a split, in a temporary file, its labels, and what a gate that reads more says.

    Raises:
        UserError: The disk has no room for them.
    """
    network, samples = run.model.network, len(run.data.loader(split).dataset)  # type: ignore[arg-type]
    logits, labels, scores = LogitFile(samples, run.folder), [], []
    for inputs, classes in run.batches(split):
        extracted = network.extract(inputs)
        found = network.exit_logits(extracted)
        logits.append(found)
        labels.append(classes.cpu())
        if network.gate.reads == "known":
            scores.append(network.gate(network.known(extracted, found)).cpu())
    held_out = run.model.held_out(samples)
    return Split(logits, torch.cat(labels), torch.cat(scores) if scores else None, held_out)
