"""What all routines share: judging exits and operating points, reporting them, and checkpoint identity."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eenet.calibration import Calibration, OperatingPoint, calibrated_figures, trust, trust_records
from eenet.described import Described
from eenet.errors import UserError
from eenet.features import Features, feature_options
from eenet.files import FilePath, check_writable
from eenet.metrics import Records, per_class, sample_statistics
from eenet.network import EarlyExitNetwork, ExitFeatures, ExitOutputs
from eenet.policies import Policy
from eenet.reporting import Results, evaluate, operating_point, static_exits, widest_nodes
from eenet.runs import IDENTITY, identify, relocate
from lightning_modules.batches import DataModel, first_inputs, settle_preprocessing
from lightning_modules.checkpoints import check_epochs, check_identity, identity, load_backbone, warn_seen
from lightning_modules.choosing import ChoosesPoints, chosen
from lightning_modules.heading import heading, training_record
from lightning_modules.losses import LossLog
from lightning_modules.predictions import predicted
from lightning_modules.reports import Reports
from lightning_modules.schedules import cosine, end_schedules

if TYPE_CHECKING:
    from lightning.pytorch import Callback

TRUSTED = ("tempered", "covered", "sizes")
"""What `trust_records` makes."""


class ExitRoutine(Described, DataModel, ChoosesPoints, Reports, ABC):
    """Trains an early-exit network, judges it and reports it.

    Batches are `(inputs, labels)`, or `(ExitFeatures, labels)` where a frozen backbone was run before.

    Args:
        network: The network.
        freeze_backbone: Keep the backbone's weights and its normalisation statistics as they are.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        features: Where the features of a frozen backbone are kept for training and validation.

    Attributes:
        method: Name of the method in results.
        updates: Optimizer steps that Lightning counts for each batch.
        calibration: What `eenet calibrate` found, of which `calibrated_points` are tested.
        calibrated_points: Operating points that are tested instead of the routine's own.
        trained: Seed and trainer of the training that the weights come from, where they come from a checkpoint.
        per_class: Report the accuracy of every class too.
    """

    method: str
    updates = 1

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
        self._continued = False
        self._records = Records(["statistics", "predictions", "scores"])
        self._tempered = Records(["statistics"])
        self._points: dict[str, tuple[OperatingPoint, EarlyExitNetwork]] = {}
        self._routed: dict[str, Records] = {}
        if freeze_backbone:
            network.backbone.requires_grad_(False)
        elif not network.backbone.trainable:
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

    def refuse_connections(self) -> None:
        """Raise a `UserError` for connections between exits with weights, which the routine does not train."""
        kind = type(self.network.connection).__name__
        if next(self.network.connection.parameters(), None) is not None:
            raise UserError("model.network.connection", kind, "is trained by lightning_modules.DecoupledExits")

    def own_points(self) -> dict[str, OperatingPoint]:
        """The routine's own policies, with what they were chosen on."""
        chosen_on = self.validated_on if self.chooses else None
        return {name: OperatingPoint(policy, chosen_on=chosen_on) for name, policy in self.policies().items()}

    def operating_points(self) -> dict[str, OperatingPoint]:
        """The points that are tested: those of a calibration where asked for, else the routine's own."""
        return self.calibrated_points or self.own_points()

    def train(self, mode: bool = True) -> "ExitRoutine":
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.network.backbone.eval()
        return self

    def setup(self, stage: str) -> None:
        """Count the costs, check the policies, and warn of budgets that cannot be met."""
        for policy in self.policies().values():
            self.network.check(policy)
        _ = self.network.costs
        self._continued = False
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "settled", True) is None:
            settle_preprocessing(self, data)
        if stage in ("fit", "validate"):
            self.keep_features()
        if stage == "fit":
            self.train()
            if self.trainer.strategy.restore_checkpoint_after_setup:
                self._begin()  # before the weights are sharded, whose checkpoint comes too late to ask for
        for name, why in self.unmet.items():
            warnings.warn(f"model.budgets: {name} {why}", stacklevel=2)

    def on_fit_start(self) -> None:
        """Before a new training, load the backbone and prepare the network; a continued one has been."""
        super().on_fit_start()
        if not (self._continued or self.trainer.strategy.restore_checkpoint_after_setup):
            self._begin()

    def _begin(self) -> None:
        if self.backbone_checkpoint is not None:
            load_backbone(self.network.backbone, self.backbone_checkpoint)
            if self.trainer.is_global_zero:
                warn_seen(self.trainer.datamodule, self.backbone_checkpoint)  # type: ignore[attr-defined]
        for buffer in self.network.prepare(self.inputs):
            buffer.copy_(self.trainer.strategy.broadcast(buffer))  # the same everywhere

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

    def inputs(self, split: str, batches: int) -> Iterator[Any]:
        """The first batches of a split in its order, without labels."""
        data, loop = self.trainer.datamodule, self.trainer.fit_loop  # type: ignore[attr-defined]
        if hasattr(data, "loader"):
            loader = data.loader(split)
        else:
            found = (loop if split == "train" else loop.epoch_loop.val_loop)._data_source.dataloader()
            loader = found[0] if isinstance(found, list) else found
        return first_inputs(loader, batches, self.network)

    def configure_callbacks(self) -> "list[Callback]":
        """What every training gets beside its last validation where checkpoints are kept, unless the trainer has it."""
        if not self.trainer.checkpoint_callbacks or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return super().configure_callbacks()
        from lightning_modules.callbacks import HoldFolder, LastCheckpoint, RandomState
        from lightning_modules.record import SaveConfig

        own = (*super().configure_callbacks(), RandomState(), HoldFolder(), SaveConfig(), LastCheckpoint())
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
        """Judge all nodes on a batch."""
        self.judge(*batch)

    def judge(self, inputs: Any, labels: Tensor) -> ExitOutputs:
        """Compute all nodes of a batch and add them to the records."""
        outputs = self(inputs)
        self.record(outputs, labels)
        return outputs

    def record(self, outputs: ExitOutputs, labels: Tensor) -> None:
        """Add a batch to the records that are judged at the end of the epoch."""
        self._records.update(
            statistics=sample_statistics(outputs.logits, labels),
            predictions=outputs.logits.argmax(-1),
            scores=outputs.scores,
        )

    def on_validation_epoch_end(self) -> None:
        """Judge every exit and operating point, and log them; a validation of the whole split chooses the points.

        On a part of it points that are not chosen yet are tried out, and no more than that.
        """
        records = self._records.compute()
        self._records.reset()
        self.finish_validation(records)
        trial = self.trial() or self.too_early
        with self.kept(trial is not None):
            if not self.too_early and (trial is None or not self.current):
                self.choose_points(records)
            rows = self.validation_rows(records)
            more = self.more_results(records)
        if self.trainer.sanity_checking:
            return
        if trial is None:
            self.remember(len(records["predictions"]))
        principal = self.watched(rows, records)
        rows["operating_points"] = self.mark(rows["operating_points"], trial)
        self.results = {**heading(self, "val"), **rows, **more}
        self._log_results("val", principal)
        if self.trainer.state.fn == "validate":
            self._print_results()

    def validation_rows(self, records: dict[str, Tensor]) -> Results:
        """Rows of exits and of the routine's own points, from `statistics`, `predictions` and `scores`."""
        return evaluate(**records, policies=self.policies(), costs=self.network.costs)

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Give the training what it learns from validation: `statistics`, `predictions` and `scores` of all samples."""

    def choose_points(self, records: dict[str, Tensor]) -> None:
        """Choose the operating points from `statistics`, `predictions` and `scores` of all samples."""

    def more_results(self, records: dict[str, Tensor]) -> Results:
        """What a method says beside the rows of exits and points, from `statistics`, `predictions` and `scores`."""
        return {}

    def _prepare_points(self) -> None:
        usable = self.usable_points()
        self._points = {name: (point, point.network(self.network)) for name, point in usable.items()}
        for point, _ in self._points.values():
            point.policy.to(self.device)

    def on_test_start(self) -> None:
        """Make the operating points ready, with room for the records of each; those that are not chosen do not run."""
        check_writable(self.run_folder)
        self._prepare_points()
        names = ["statistics", "nodes", "exits", "labels", *(TRUSTED if self.calibration is not None else ())]
        self._routed = {name: Records(names) for name in self._points}

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Judge the static exits, and really route the batch at every operating point."""
        inputs, labels = batch
        outputs = self.judge(inputs, labels)
        if self.calibration is not None:
            tempered = outputs.logits / self.calibration.temperatures.to(outputs.logits).unsqueeze(1)
            self._tempered.update(statistics=sample_statistics(tempered, labels))
        for records, (point, network) in zip(self._routed.values(), self._points.values(), strict=True):
            routed = network.route(inputs, point.policy)
            rows = {"nodes": routed.nodes, "exits": routed.exits, "labels": labels}
            rows["statistics"] = sample_statistics(routed.logits, labels)
            if self.calibration is not None:
                temperatures = point.own(self.calibration.temperatures, self.network)
                rows |= trust_records(point, temperatures, routed.logits, routed.nodes, labels)
            records.update(**rows)

    def on_test_epoch_end(self) -> None:
        """Log the results, write `results.json` and the figures, and print the table."""
        everything = self._records.compute()
        exits, more = static_exits(everything["statistics"], self.network.costs), self.more_results(everything)
        self._records.reset()
        if self.calibration is not None:
            tempered = self._tempered.compute()["statistics"]
            for row, node in zip(exits, widest_nodes(self.network.costs), strict=True):
                figures = calibrated_figures(tempered[:, node])
                temperature = self.calibration.temperatures[node].item()
                row["calibrated"] = {"temperature": temperature, **figures, "doubt": self.calibration.doubts.get(node)}
            self._tempered.reset()
        points = {}
        for (name, (point, network)), records in zip(self._points.items(), self._routed.values(), strict=True):
            gathered = records.compute()
            statistics, nodes, labels = (gathered.pop(key) for key in ("statistics", "nodes", "labels"))
            row = operating_point(name, statistics, nodes, network.costs)
            row |= point.fields(row["exit_fractions"], self.network.num_exits)
            if self.per_class:
                row["per_class"] = per_class(statistics[:, 1], labels, network.backbone.num_classes)
            if self.calibration is not None:
                row |= trust(point, **gathered, labels=labels, num_exits=network.num_exits)
            points[name] = chosen(row, point)
        self.results = {**heading(self, "test"), "operating_points": self.all_rows(points), "exits": exits, **more}
        self._log_results("test")
        self._print_results()
        self._write_results()

    def on_predict_start(self) -> None:
        """Make the operating points ready.

        Raises:
            UserError: The principal one is not chosen.
        """
        self.require_principal()
        self._prepare_points()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Route a batch at the principal operating point: `labels`, `probabilities`, `exits` and `macs` per sample."""
        point, network = next(iter(self._points.values()))
        return predicted(network.route(batch[0], point.policy))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose checkpoint it is."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[IDENTITY] = identity(self.method, self.network, self.data_name)
        if self._trainer is not None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.trained = {**training_record(self.trainer), "identity": identify(self, data)}
            checkpoint[IDENTITY] |= {"folder": str(self.run_folder.absolute()), "training": self.trained}
            if hasattr(data, "preprocessing"):
                checkpoint[IDENTITY]["preprocessing"] = data.preprocessing.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network or data, or trained for longer; take what it says of its run."""
        check_identity(checkpoint, self.method, self.network, self.data_name)
        super().on_load_checkpoint(checkpoint)
        self._continued = True
        self.trained_steps = checkpoint.get("global_step", 0)
        self.trained = checkpoint[IDENTITY].get("training")
        if self._trainer is not None:
            relocate(checkpoint, self.run_folder)
            if self._trainer.state.fn == "fit":
                check_epochs(checkpoint, self._trainer.max_epochs)

    def cosine(self, optimizer: torch.optim.Optimizer, final: float) -> torch.optim.lr_scheduler.LRScheduler:
        """Cosine decay per epoch from the optimizer's learning rate to a final one at the training's last epoch.

        Raises:
            UserError: The training has no end.
        """
        return cosine(optimizer, final, self.trainer)

    def on_train_start(self) -> None:
        """Let the learning rates end with this training, which may continue another."""
        from lightning_modules.quick import quicken

        super().on_train_start()
        end_schedules(self.trainer, self.updates)
        quicken(self.trainer)
