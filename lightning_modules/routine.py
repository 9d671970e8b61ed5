"""What all routines share: judging exits and operating points, reporting them, and checkpoint identity."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from eenet.backbones.base import to_device
from eenet.calibration import Calibration, OperatingPoint, calibrated_figures, trust
from eenet.described import Described
from eenet.errors import UserError
from eenet.features import Features, feature_options
from eenet.files import FilePath
from eenet.metrics import Records, per_class, sample_statistics
from eenet.network import EarlyExitNetwork, ExitFeatures, ExitOutputs
from eenet.policies import Policy
from eenet.quantization import QuantizedBackbone, RoutedPaths
from eenet.quantization.results import bitops_fields
from eenet.quantization.twins import Twins
from eenet.reporting import (
    Results,
    accuracy_cost_figure,
    calibration_table,
    conformal_table,
    evaluate,
    exit_histogram_figure,
    make_console,
    operating_point,
    reliability_figure,
    results_table,
    save_figure,
    static_exits,
    write_json,
)
from eenet.runs import IDENTITY, relocate
from eenet.runtime import Routed
from lightning_modules.callbacks import HoldFolder, LastCheckpoint, RandomState, folder_of
from lightning_modules.checkpoints import check_identity, identity, load_backbone
from lightning_modules.heading import heading, training_record
from lightning_modules.losses import LossLog
from lightning_modules.record import SaveConfig

SCALARS = ("accuracy", "nll", "ece", "brier", "macs", "macs_fraction", "bitops_fraction", "stages_mean")
"""Figures of a result row that are logged where it has them."""


FIGURES = {
    "accuracy_cost": accuracy_cost_figure,
    "exit_histogram": exit_histogram_figure,
    "reliability": reliability_figure,
}
"""Figures of the results by name."""


class ExitRoutine(Described, LightningModule, ABC):
    """Trains an early-exit network, judges it and reports it.

    Batches are `(inputs, labels)`, or `(ExitFeatures, labels)` where a frozen backbone was run before.

    Args:
        network: The network.
        freeze_backbone: Keep the backbone's weights and its normalisation statistics as they are.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        features: Where the features of a frozen backbone are kept for training and validation.

    Attributes:
        method: Name of the method in results.
        figures: Draw the results, by name; in files after a test, in TensorBoard after every validation and test.
        results: The last validation's or test's results, without the heading fields during validation.
        calibration: What `eenet calibrate` found, of which `calibrated_points` are tested.
        calibrated_points: Operating points that are tested instead of the routine's own.
        trained: Seed and trainer of the training that the weights come from, where they come from a checkpoint.
        per_class: Report the accuracy of every class too.
    """

    method: str
    figures: Mapping[str, Callable[[Results], Figure]] = FIGURES

    def __init__(
        self,
        network: EarlyExitNetwork,
        freeze_backbone: bool,
        backbone_checkpoint: FilePath | None = None,
        features: Features = "off",
    ) -> None:
        super().__init__()
        self.network = network
        self.freeze_backbone = freeze_backbone
        self.backbone_checkpoint = backbone_checkpoint
        self.features = feature_options(features)
        self.results: Results = {}
        self.calibration: Calibration | None = None
        self.calibrated_points: dict[str, OperatingPoint] = {}
        self.per_class = False
        self.trained: dict[str, Any] | None = None
        self.losses = LossLog()
        self._records = Records(["statistics", "predictions", "scores"])
        self._tempered = Records(["statistics"])
        self._points: dict[str, tuple[OperatingPoint, EarlyExitNetwork]] = {}
        self._routed = nn.ModuleDict()
        if freeze_backbone:
            network.backbone.requires_grad_(False)
        elif isinstance(network.backbone, QuantizedBackbone):
            remedy = "has rounded weights, which no gradient reaches; train the float backbone and name its run"
            raise UserError("model.network.backbone", type(network.backbone).__name__, remedy)

    @abstractmethod
    def policies(self) -> dict[str, Policy]:
        """The operating points by name, the principal one first."""

    def require_early_exits(self) -> None:
        """Refuse a network with nothing between its backbone's input and its own head to train.

        Raises:
            UserError: The network has no early exit.
        """
        if self.network.num_exits == 1:
            raise UserError("model.network.exits", self.network.exit_stages, "needs at least one early exit")

    def operating_points(self) -> dict[str, OperatingPoint]:
        """The points that are tested: those of a calibration where asked for, else the routine's own policies."""
        own = {name: OperatingPoint(policy) for name, policy in self.policies().items()}
        return self.calibrated_points or own

    def train(self, mode: bool = True) -> "ExitRoutine":
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.network.backbone.eval()
        return self

    def setup(self, stage: str) -> None:
        """Count the costs, check the policies and, before a new training, load the backbone and choose its ranges."""
        for policy in self.policies().values():
            policy.check(self.network.num_exits)
        _ = self.network.costs
        if stage in ("fit", "validate"):
            self.keep_features()
        if stage == "fit":
            self.train()
            if self.trainer.ckpt_path is None:
                if self.backbone_checkpoint is not None:
                    load_backbone(self.network.backbone, self.backbone_checkpoint)
                self.choose_ranges()

    def keep_features(self) -> None:
        """Let the data give features instead of inputs where that is asked for, but for a trial.

        Raises:
            UserError: The data cannot.
        """
        trainer: Any = self.trainer
        options = None if trainer.fast_dev_run or trainer.overfit_batches else self.features
        if hasattr(trainer.datamodule, "keep_features"):
            trainer.datamodule.keep_features(self.network, options)
        elif options is not None:
            raise UserError("model.features", options.store, "must be off for data that are no `SplitData`")

    def choose_ranges(self) -> None:
        """Before a new training, give a quantized backbone the ranges of its activations."""
        if isinstance(self.network.backbone, QuantizedBackbone):
            self.take_ranges(self.network.backbone, self.network.backbone.calibration_batches)

    def take_ranges(self, twins: Twins, batches: int) -> None:
        """Take ranges from batches of training inputs, and choose among them on as many validation inputs."""
        twins.calibrate(self.inputs("train", batches))
        twins.choose_ranges(self.inputs("val", batches))

    def inputs(self, split: str, batches: int) -> Iterator[Any]:
        """The first batches of a split in its order, without labels."""
        data, loop = self.trainer.datamodule, self.trainer.fit_loop  # type: ignore[attr-defined]
        if hasattr(data, "loader"):
            loader = data.loader(split)
        else:
            found = (loop if split == "train" else loop.epoch_loop.val_loop)._data_source.dataloader()
            loader = found[0] if isinstance(found, list) else found
        return (to_device(inputs, self.network) for inputs, _ in islice(loader, batches))

    def configure_callbacks(self) -> list[Callback]:
        """What every training gets where checkpoints are kept, unless the trainer has it."""
        if not self.trainer.checkpoint_callbacks or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return []
        own = (RandomState(), HoldFolder(), SaveConfig(), LastCheckpoint())
        return [callback for callback in own if type(callback) not in map(type, self.trainer.callbacks)]  # type: ignore[attr-defined]

    def extract(self, inputs: Any) -> ExitFeatures:
        """What the exits read: given, or computed by the backbone."""
        if isinstance(inputs, ExitFeatures):
            return inputs
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            return self.network.extract(inputs)

    def forward(self, inputs: Any) -> ExitOutputs:
        """All exits' logits and gate scores."""
        return self.network.from_features(self.extract(inputs))

    def log_losses(self, phase: str, batch_idx: int, loss: Tensor) -> None:
        """Remember a training loss; check and log the means when the trainer writes to its loggers.

        That is at multiples of `log_every_n_steps` over the whole training, which epochs need not end on.
        """
        self.losses.add(phase, batch_idx, loss)
        if self.trainer._logger_connector.should_update_logs:
            self._flush_losses()

    def _flush_losses(self) -> None:
        means = {f"train/loss/{name}": mean for name, mean in self.losses.flush().items()}
        if means:
            self.log_dict(means, on_step=True, on_epoch=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the epoch's last losses before anything is validated or saved."""
        if self.trainer.is_last_batch:
            self._flush_losses()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Judge all exits on a batch."""
        inputs, labels = batch
        self.record(self(inputs), labels)

    def record(self, outputs: ExitOutputs, labels: Tensor) -> None:
        """Add a batch to the records that are judged at the end of the epoch."""
        self._records.update(
            statistics=sample_statistics(outputs.logits, labels),
            predictions=outputs.logits.argmax(-1),
            scores=outputs.scores,
        )

    def on_validation_epoch_end(self) -> None:
        """Judge every exit and operating point, and log them."""
        records = self._records.compute()
        self._records.reset()
        self.finish_validation(records)
        rows = evaluate(**records, policies=self.policies(), costs=self.network.costs)
        for kind, found in rows.items():
            for row in found:
                row |= bitops_fields(self.network, row, static=kind == "exits")
        self.results = {**heading(self, "val"), **rows}
        self._log_results("val")
        if self.trainer.state.fn == "validate":
            self._print_results()

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Choose what is chosen on validation data, from `statistics`, `predictions` and `scores` of all samples."""

    def _prepare_points(self) -> None:
        self._points = {name: (point, point.network(self.network)) for name, point in self.operating_points().items()}
        for point, _ in self._points.values():
            point.policy.to(self.device)

    def on_test_start(self) -> None:
        """Make the operating points ready, with room for the records of each."""
        self._prepare_points()
        self._routed = nn.ModuleDict({str(i): Records(["logits", "exits", "labels"]) for i in range(len(self._points))})
        self._routed.to(self.device)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Judge the static exits, and really route the batch at every operating point."""
        inputs, labels = batch
        outputs = self(inputs)
        self.record(outputs, labels)
        if self.calibration is not None:
            tempered = outputs.logits / self.calibration.temperatures.to(outputs.logits).unsqueeze(1)
            self._tempered.update(statistics=sample_statistics(tempered, labels))
        for records, (point, network) in zip(self._routed.values(), self._points.values(), strict=True):
            routed = network.route(inputs, point.policy)
            records.update(logits=routed.logits, exits=routed.exits, labels=labels)  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        """Log the results, write `results.json` and the figures, and print the table."""
        exits = static_exits(self._records.compute()["statistics"], self.network.costs)
        for row in exits:
            row |= bitops_fields(self.network, row, static=True)
        self._records.reset()
        if self.calibration is not None:
            for row, statistics in zip(exits, self._tempered.compute()["statistics"].unbind(1), strict=True):
                row["calibrated"] = calibrated_figures(statistics)
            self._tempered.reset()
        points = []
        for (name, (point, network)), records in zip(self._points.items(), self._routed.values(), strict=True):
            gathered = records.compute()  # type: ignore[operator]
            statistics = sample_statistics(gathered["logits"], gathered["labels"])
            row = operating_point(name, statistics, gathered["exits"], network.costs)
            row |= bitops_fields(network, row)
            if self.per_class:
                row["per_class"] = per_class(statistics[:, 1], gathered["labels"], gathered["logits"].shape[1])
            if self.calibration is not None:
                row |= trust(point, self.calibration.temperatures, **gathered)
            points.append(row)
        self.results = {**heading(self, "test"), "operating_points": points, "exits": exits}
        self._log_results("test")
        self._print_results()
        self._write_results()

    def on_predict_start(self) -> None:
        """Make the operating points ready."""
        self._prepare_points()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Route a batch at the principal operating point: `labels`, `probabilities`, `exits` and `macs` per sample."""
        point, network = next(iter(self._points.values()))
        return predicted(network.route(batch[0], point.policy))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose checkpoint it is."""
        checkpoint[IDENTITY] = identity(self.method, self.network, self.data_name)
        if self._trainer is not None:
            self.trained = training_record(self.trainer)
            checkpoint[IDENTITY] |= {"folder": str(self.run_folder.absolute()), "training": self.trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network or data set; let its callbacks look into this run's folder."""
        check_identity(checkpoint, self.method, self.network, self.data_name)
        self.trained = checkpoint[IDENTITY].get("training")
        if self._trainer is not None:
            relocate(checkpoint, self.run_folder)

    def cosine(self, optimizer: torch.optim.Optimizer, final: float) -> torch.optim.lr_scheduler.LRScheduler:
        """Cosine decay per epoch from the optimizer's learning rate to a final one at the trainer's last epoch.

        Raises:
            UserError: The trainer has no last epoch.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError("trainer.max_epochs", epochs, "the learning rate's schedule needs a last epoch, at least 1")
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=final)

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

    def _log_results(self, split: str) -> None:
        values: dict[str, float] = {}
        for row in self.results["exits"] + self.results["operating_points"]:
            name = row["name"].replace(" ", "_")
            values |= {f"{split}/{key}/{name}": row[key] for key in SCALARS if key in row}
        for row in self.results["operating_points"]:
            for exit, share in enumerate(row["exit_fractions"]):
                values[f"{split}/share_leaving/{row['name']}/exit_{exit}"] = share
        principal = self.results["operating_points"][0]
        values[f"{split}/macs_fraction"] = principal["macs_fraction"]
        self.log_dict(values, rank_zero_only=True)
        self.log(f"{split}/accuracy", principal["accuracy"], prog_bar=True, rank_zero_only=True)

    @rank_zero_only
    def _write_results(self) -> None:
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        results = self.result_file("results.json")
        write_json(results, self.results)
        for name, draw in self.figures.items():
            save_figure(draw(self.results), self.result_file(f"{name}.png"))
        Console().print(f"results: {results}\nfigure: {self.result_file('accuracy_cost.png')}")

    @rank_zero_only
    def _print_results(self) -> None:
        console = make_console()
        console.print(results_table(self.results))
        if "calibrated" in self.results["exits"][0]:
            console.print(calibration_table(self.results), conformal_table(self.results))


def predicted(routed: Routed | RoutedPaths) -> dict[str, Tensor]:
    """What `predict` returns of routed samples: `labels`, `probabilities`, `exits` and `macs`."""
    probabilities = routed.logits.softmax(-1)
    return {
        "labels": probabilities.argmax(-1),
        "probabilities": probabilities,
        "exits": routed.exits,
        "macs": routed.macs,
    }
