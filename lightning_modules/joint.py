"""JEI-DNN: gates and inference modules learned jointly on a frozen backbone (Regol, Chataoui, Coates, ICLR 2024)."""

import warnings
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.gates import ConfidenceGate
from eenet.metrics import Records
from eenet.network import EarlyExitNetwork, ExitFeatures, ExitOutputs
from eenet.objectives import (
    GateObjective,
    best_exits,
    exit_weighted_loss,
    gate_loss,
    gate_targets,
    positive_weights,
    weighted_sum_loss,
)
from eenet.policies import Policy, SequentialGates, exit_distribution
from lightning_modules.methods import method_name
from lightning_modules.routine import ExitRoutine
from lightning_modules.warmup import EarlyStopping

Phase = Literal["warmup", "gates", "inference_modules"]


class JointExits(ExitRoutine):
    """Warm up the inference modules, then alternate phases that train the gates and the inference modules.

    Gates learn to leave at the exit with the least loss plus priced cost; inference modules learn on the samples that
    the gates send them (section 4 and algorithm 1 of the paper). The first phase after the warm-up trains the gates,
    which are untrained then [inferred].

    With `joint: false` the inference modules rest after the warm-up and the gates alone learn, by the same targets: the
    baseline `decoupled_gates`.

    Args:
        network: The network; its gate must be a learned one.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        tradeoff: lambda, the price of the full network's cost in units of the loss; larger leaves earlier.
        gate_objective: Loss of the best exit: `ce`, `zero_one` or `prob` (minus the true class's probability).
        optimizer: Makes the two optimizers, of the inference modules and of the gates.
        final_learning_rate: Where the cosine schedule ends.
        warmup_epochs: Most epochs of the warm-up, within the trainer's `max_epochs`; it ends before when every
            inference module has stopped. [inferred]
        warmup_patience: Epochs without a better validation accuracy after which an inference module stops.
        phase_batches: Batches of each phase after the warm-up.
        rescale: Rescale each sample's exit weights, see `eenet.objectives.exit_weighted_loss`.
        joint: Train the inference modules again after the warm-up; otherwise only the gates.
        features: `off`, `memory` or `disk`: run the frozen backbone once per sample and train from what its exits read;
            or a mapping of `store`, `views`, `dtype` and `folder`, see `eenet.features.FeatureOptions`.

    Raises:
        UserError: Negative trade-off, unknown objective, no early exit, no learned gate, counts below 1, or neither a
            warm-up nor joint training.
    """

    positive_weight: Tensor
    costs: Tensor

    def __init__(
        self,
        network: EarlyExitNetwork,
        backbone_checkpoint: FilePath | None = None,
        tradeoff: float = 1.0,
        gate_objective: GateObjective = "ce",
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4),
        final_learning_rate: float = 2e-4,
        warmup_epochs: int = 5,
        warmup_patience: int = 2,
        phase_batches: int = 200,
        rescale: bool = True,
        joint: bool = True,
        features: Features = "off",
    ) -> None:
        super().__init__(network, freeze_backbone=True, backbone_checkpoint=backbone_checkpoint, features=features)
        if not 0 <= tradeoff < float("inf"):
            raise UserError("model.tradeoff", tradeoff, "lambda prices the cost and must be a finite number >= 0")
        if gate_objective not in get_args(GateObjective):
            raise UserError("model.gate_objective", gate_objective, f"must be one of {get_args(GateObjective)}")
        for field, count, least in (
            ("warmup_epochs", warmup_epochs, 0 if joint else 1),
            ("warmup_patience", warmup_patience, 1),
            ("phase_batches", phase_batches, 1),
        ):
            if count < least:
                raise UserError(f"model.{field}", count, f"must be at least {least}")
        self.require_early_exits()
        if isinstance(network.gate, ConfidenceGate):
            kind = type(network.gate).__name__
            raise UserError("model.network.gate", kind, "has nothing to learn; use eenet.gates.UncertaintyGate")
        self.automatic_optimization = False
        self.method = method_name({"jei_dnn": joint, "decoupled_gates": not joint, "boosted": network.boosted})
        self.tradeoff, self.gate_objective, self.rescale = tradeoff, gate_objective, rescale
        self.optimizer, self.final_learning_rate = optimizer, final_learning_rate
        self.warmup_epochs, self.phase_batches, self.joint = warmup_epochs, phase_batches, joint
        self.num_gates = network.num_exits - 1
        self.early_stopping = EarlyStopping(self.num_gates, warmup_patience)
        self.warming_up = warmup_epochs > 0
        self.joint_batches = 0
        self._targets = Records(["targets"])
        self.register_buffer("positive_weight", torch.ones(self.num_gates))
        self.register_buffer("costs", network.costs.normalised().float(), persistent=False)

    def policies(self) -> dict[str, Policy]:
        """The learned gates."""
        return {"learned": SequentialGates()}

    @property
    def phase(self) -> Phase:
        """What the next batch trains."""
        if self.warming_up:
            return "warmup"
        return "inference_modules" if self.joint and self.joint_batches // self.phase_batches % 2 else "gates"

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step of the phase's optimizer."""
        inputs, labels = batch
        phase = self.phase
        loss = self.phase_loss(phase, self.extract(inputs), labels)
        modules_optimizer, gates_optimizer = self.optimizers()  # type: ignore[attr-defined]
        optimizer = gates_optimizer if phase == "gates" else modules_optimizer
        optimizer.zero_grad()
        self.manual_backward(loss)
        if phase == "warmup":
            self._hold_stopped()
        else:
            self.joint_batches += 1
        optimizer.step()
        self.log_losses(phase, batch_idx, loss)

    def phase_loss(self, phase: Phase, extracted: ExitFeatures, labels: Tensor) -> Tensor:
        """The loss of a phase.

        The warm-up weighs exit `l` of `L` by `L - l`, counted from 0. The last exit is frozen and left out.
        """
        logits = self.network.exit_logits(extracted)
        early = logits[:, :-1]
        if phase == "warmup":
            weights = torch.arange(self.num_gates + 1, 1, -1, device=early.device, dtype=early.dtype)
            return weighted_sum_loss(early, labels, weights)
        if phase == "gates":
            return gate_loss(self.network.gate(early), self.targets(logits, labels), self.positive_weight)
        with torch.no_grad():
            distribution = exit_distribution(self.network.gate(early))
        return exit_weighted_loss(early, labels, distribution[:, :-1], self.rescale)

    def targets(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Gate targets, `(batch, gates)`."""
        best = best_exits(logits.detach(), labels, self.costs, self.tradeoff, self.gate_objective)
        return gate_targets(best, self.num_gates)

    def _hold_stopped(self) -> None:
        for module, stopped in zip(self.network.inference_modules, self.early_stopping.stopped, strict=True):
            if stopped:
                for parameter in module.parameters():
                    parameter.grad = None

    def record(self, outputs: ExitOutputs, labels: Tensor) -> None:
        """Record the gate targets too, whose frequencies give the positive weights."""
        super().record(outputs, labels)
        self._targets.update(targets=self.targets(outputs.logits, labels))

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Refresh the positive weights; in the warm-up, stop the modules that no longer gain."""
        targets = self._targets.compute()["targets"]
        self._targets.reset()
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        self.positive_weight.copy_(positive_weights(targets.sum(0), len(targets)))
        self.log_dict({f"train/positive_weight/gate_{i}": w for i, w in enumerate(self.positive_weight)})
        if self.warming_up:
            accuracies = records["statistics"][:, :-1, 1].double().mean(0).tolist()
            modules = list(self.network.inference_modules)
            self.early_stopping.update(modules, accuracies)
            if all(self.early_stopping.stopped) or self.current_epoch + 1 >= self.warmup_epochs:
                self.warming_up = False
                self.early_stopping.restore(modules)
                self.optimizers()[0].optimizer.state.clear()  # type: ignore[index]

    def on_train_epoch_end(self) -> None:
        """Step the schedules; log the phase: 0 in the warm-up, 1 for gates, 2 for inference modules."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # gates rest in the warm-up
            for schedule in self.lr_schedulers():  # type: ignore[union-attr]
                schedule.step()
        self.log("train/phase", float(get_args(Phase).index(self.phase)))

    def configure_optimizers(self) -> Any:
        """Optimizers of the inference modules and of the gates, each under a cosine schedule."""
        optimizers = [
            self.optimizer(self.network.inference_modules.parameters()),
            self.optimizer(self.network.gate.parameters()),
        ]
        return optimizers, [self.cosine(optimizer, self.final_learning_rate) for optimizer in optimizers]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the schedule's state."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["jei_dnn"] = {
            "warming_up": self.warming_up,
            "joint_batches": self.joint_batches,
            "early_stopping": self.early_stopping.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the schedule."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["jei_dnn"]
        self.warming_up, self.joint_batches = state["warming_up"], state["joint_batches"]
        self.early_stopping.load_state_dict(state["early_stopping"])
