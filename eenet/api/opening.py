"""Opening a finished run: its routine with the trained weights, its data, and what its exits say of a split."""

import shlex
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Subset

from eenet.backbones.proofs import varied
from eenet.calibration import Calibration, ChosenOn, LogitFile, OperatingPoint
from eenet.calibration.candidates import Split
from eenet.calibration.points import CALIBRATION
from eenet.errors import UserError, said
from eenet.late import Late, without
from eenet.parsing.refusals import Parser
from eenet.parsing.shipped import imports
from eenet.runs import RunFolder, check_trust, load_config, read_checkpoint

PARTS = ("model", "data")
"""What a run's configuration must have."""


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Run folder.
        checkpoint: The checkpoint whose weights it has.
        model: The routine in evaluation mode, on the device that the run's trainer would choose.
        data: Its data.
        device: That device.
        split: Fingerprint of the validation split, `None` where the data were not read.
    """

    folder: Path
    checkpoint: Path
    model: Any
    data: Any
    device: torch.device
    split: str | None = None

    def file(self, name: str) -> Path:
        """A file of the run folder that belongs to the checkpoint; see `eenet.runs.RunFolder.file`."""
        return RunFolder(self.folder).file(name, self.checkpoint)

    @property
    def options(self) -> str:
        """How a command is told which run and checkpoint: what follows its name."""
        last = self.checkpoint == RunFolder(self.folder).last
        return shlex.join([str(self.folder), *([] if last else ["--ckpt_path", str(self.checkpoint)])])

    @property
    def network(self) -> Any:
        """Its network, with the points that were chosen for it."""
        network = self.model.network
        if self.file(CALIBRATION).is_file():
            network.points = dict(Calibration.of(self.folder, self.checkpoint, "all").points)
        return network

    def batches(self, split: str) -> Iterator[Any]:
        """The batches of a split on the run's device."""
        for batch in self.data.loader(split):
            yield self.data.transfer_batch_to_device(batch, self.device, 0)

    def chosen_on(self, samples: int) -> ChosenOn:
        """What a point is chosen on by so many samples of the run's validation split."""
        return ChosenOn(self.model.network_digest(), self.split, samples)


def open_run(folder: str | Path, read_data: bool | None = True, checkpoint: str = "last", trains: bool = False) -> Run:
    """Open the run of a folder.

    Args:
        folder: The run folder.
        read_data: Read the data of the run, without which only its transform or tokenizer can be used; `None` for where
            they are there.
        checkpoint: Which checkpoint, as for `eenet.runs.RunFolder.checkpoint`.
        trains: Whether Lightning is to train or test it.

    Raises:
        UserError: The folder holds no finished run, or its data are not split as they were in training.
    """
    own = RunFolder(Path(folder))
    for path in (own.config, own.last) if checkpoint in ("last", "best") else (own.config,):
        if not path.is_file():
            raise UserError("run", str(folder), f"there is no {path}; `eenet fit` makes a run")
    file, values = own.checkpoint(checkpoint), load_config(own.config)
    if not all(isinstance(values.get(part), dict) for part in PARTS):
        raise UserError("run", str(own.config), "has no `model` and `data` with their classes; `eenet fit` writes it")
    device, saved = device_of(values.get("trainer") or {}), read_checkpoint(file, "run")
    with imports(check_trust(values, own.config)):
        made = build({part: values[part] for part in PARTS}, trains)
    model, data = made.model, made.data
    if read_data is not True:
        data.recall(saved.get(type(data).__name__) or {})
    model.meet(data, saved)
    try:
        model.on_load_checkpoint(saved)
        model.load_state_dict(saved["state_dict"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem = f"does not fit the run's configuration ({said(error)})"
        raise UserError("ckpt_path", str(file), problem) from error
    split, record = None if read_data is False else read(data, read_data is None), saved.get(type(data).__name__)
    if read_data and record:
        data.load_state_dict(record)
    return Run(own.path, file, model.to(device).eval(), data, device, split)


def read(data: Any, optional: bool) -> str | None:
    """Read data for validation; the split's fingerprint, `None` where they may be missing and are.

    Raises:
        UserError: They cannot be read and have to be.
    """
    try:
        data.prepare_data()
        data.setup("validate")
        return data.fingerprint("val")
    except UserError:
        if optional:
            return None
        raise


def build(values: dict[str, Any], trains: bool = False) -> Any:
    """Routine and data of a configuration, as far as it has them, without Lightning unless they train."""
    parser = Parser(prog="eenet")
    for part in values:
        parser.add_subclass_arguments(Late, part, fail_untyped=False, required=True)
    with nullcontext() if trains else without(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = parser.instantiate_classes(parser.parse_object(values, defaults=False))
    return made


def device_of(trainer: dict[str, Any]) -> torch.device:
    """Where a run's trainer would put it, on one device; a `UserError` where there is none such."""
    wanted = trainer.get("accelerator", "auto")
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps", 0)
    if wanted not in ("auto", "cpu"):
        raise UserError("trainer.accelerator", wanted, "is not on this machine; `eenet doctor` says what is")
    return torch.device("cpu")


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


def opened(run: Run | str | Path, checkpoint: str = "last", read_data: bool | None = True) -> Run:
    """A run that may be open already."""
    return run if isinstance(run, Run) else open_run(run, read_data, checkpoint)


def chosen_point(run: Run, name: str | None) -> Chosen:
    """A point of `eenet calibrate`, or the run's own where none is named.

    Raises:
        UserError: The run has no such point, or it was not chosen for the run's weights and data.
    """
    if name is None:
        chosen = Chosen(*next(iter(run.model.operating_points().items())))
    else:
        calibration = Calibration.of(run.folder, run.checkpoint, name, run.model.network)
        if name not in calibration.points:
            raise UserError("point", name, f"the run has {', '.join(calibration.points)}; see `eenet calibrate`")
        chosen = Chosen(name, calibration.points[name], calibration.temperatures)
    run.model.require_chosen(chosen.name, chosen.point, run.split, run.folder, run.checkpoint)
    return chosen


def class_names(data: Any) -> list[str] | None:
    """Names of the classes by number, `None` where the data know none."""
    return getattr(data, "class_names", None)


def samples_of_loader(data: Any, split: str) -> Iterator[list[Any]]:
    """Samples of data that come in batches alone, as pairs, a list for each batch of their loader.

    Raises:
        UserError: It is the training split, whose loader may give its samples in any order, or a batch is no pair of
            tensors with a row for each sample.
    """
    if split == "train":
        raise UserError("split", split, "comes from a loader that may shuffle; val and test have a fixed order")
    for batch in data.loader(split):
        rows = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else -1 for leaf in pytree.tree_leaves(batch)}
        if not isinstance(batch, tuple | list) or len(batch) != 2 or len(rows) != 1 or -1 in rows:
            problem = f"its {split} batches must be pairs (inputs, labels) of tensors with a row for each sample"
            raise UserError("data", data.name, problem)
        yield [pytree.tree_map(lambda leaf, row=row: leaf[row], batch) for row in range(len(batch[1]))]


def drawn(data: Any, split: str, most: int) -> Subset[Any]:
    """At most so many samples of a split, drawn once and for all; of data that come in batches alone, of the first."""
    if hasattr(data, "dataset"):
        found = data.dataset(split)
    else:
        found = list(islice(chain.from_iterable(samples_of_loader(data, split)), max(most, 0)))
        if len({tuple(leaf.shape for leaf in pytree.tree_leaves(inputs)) for inputs, _ in found}) > 1:
            raise UserError("data", data.name, f"its {split} inputs have different shapes, of which none can be timed")
    return Subset(found, torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:most].tolist())


def full_batches(data: Any, samples: Subset[Any], size: int) -> Iterable[Any]:
    """Samples in full batches, collated as the data collate them."""
    return getattr(data, "load", DataLoader)(samples, batch_size=size, drop_last=True)


def example(run: Run) -> Any:
    """A few inputs that differ, as the backbone takes them; texts without padding. The data need not be there."""
    return varied(run.model.network.backbone.example_input())


@torch.no_grad()
def read_split(run: Run, split: str) -> Split:
    """All nodes' logits on a split, in a temporary file, its labels, and what a gate that reads more says.

    Raises:
        UserError: The disk has no room for them.
    """
    network, samples = run.model.network, len(run.data.loader(split).dataset)
    logits, labels, scores = LogitFile(samples, run.folder), [], []
    for inputs, classes in run.batches(split):
        extracted = network.extract(inputs)
        found = network.exit_logits(extracted)
        logits.append(found)
        labels.append(classes.cpu())
        if network.gate.reads == "known":
            scores.append(network.gate(network.known(extracted, found)).cpu())
    unseen = run.model.unseen_scores(samples) if split == "val" else None
    if unseen is not None:
        scores = [unseen.cpu()]
    return Split(logits, torch.cat(labels), torch.cat(scores) if scores else None)


@torch.no_grad()
def read_training(run: Run, most: int) -> Tensor:
    """Logits of all nodes on at most so many training samples, `(samples, nodes, classes)`."""
    network = run.model.network
    features = run.data.training_features(network, run.model.features, most)
    return torch.cat([network.exit_logits(extracted).float().cpu() for extracted, _ in features])
