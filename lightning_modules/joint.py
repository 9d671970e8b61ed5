"""JEI-DNN: gates and inference modules learned jointly on a frozen backbone (Regol, Chataoui, Coates, ICLR 2024)."""

import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.gates import ConfidenceGate, StoppingGate
from eenet.metrics import Records
from eenet.network import EarlyExitNetwork, ExitFeatures, ExitOutputs
from eenet.objectives import (
    ClassWeights,
    GateObjective,
    best_exits,
    exit_weighted_loss,
    gate_loss,
    gate_targets,
    positive_weights,
    warmup_weights,
    weighted_sum_loss,
)
from eenet.policies import Policy, SequentialGates, exit_distribution
from lightning_modules.checkpoints import IDENTITY
from lightning_modules.methods import method_name
from lightning_modules.routine import ExitRoutine
from lightning_modules.schedules import OptimizerCallable
from lightning_modules.warmup import EarlyStopping

if TYPE_CHECKING:
    from lightning.pytorch import Callback

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
        gate_objective: Loss of the best exit: `ce`, `zero_one`, `prob` (minus the true class's probability) or
            `prob_if_right` (the authors': that where the exit is right, else 0). Under
            `zero_one` lambda only breaks ties until its price of running on is an error, that is at least 1; a smaller
            one is warned of.
        optimizer: Makes the optimizer, from a group of the inference modules' parameters and one of the gates'.
        final_learning_rate: Where the cosine schedule ends.
        warmup_epochs: Most epochs of training that warm up, within the trainer's `max_epochs` and however often it
            validates; the warm-up ends before when every inference module has stopped. [inferred]
        warmup_patience: Epochs without a better validation accuracy after which an inference module stops.
        phase_batches: Batches of each phase after the warm-up. Where gradients are accumulated, a phase ends with the
            optimizer step that its last batch takes part in.
        rescale: Rescale each sample's exit weights, see `eenet.objectives.exit_weighted_loss`.
        joint: Train the inference modules again after the warm-up; otherwise only the gates.
        clip: How decisions read the gates, see `eenet.policies.SequentialGates`.
        features: `off`, `memory` or `disk`: run the frozen backbone once per sample and train from what its exits read;
            or a mapping of `store`, `views`, `dtype` and `folder`, see `eenet.features.FeatureOptions`.
        class_weights: Of the inference modules' losses, not the gates': `none`, `balanced` (inversely to the classes'
            frequencies in the training split), or a list of a weight for each class.

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
        clip: bool = True,
        features: Features = "off",
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__(network, freeze_backbone=True, backbone_checkpoint=backbone_checkpoint, features=features)
        self.weigh_classes(class_weights)
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
        self.refuse_connections()
        if isinstance(network.gate, ConfidenceGate | StoppingGate):
            kind = type(network.gate).__name__
            raise UserError("model.network.gate", kind, "has nothing to learn; use eenet.gates.UncertaintyGate")
        self.method = method_name({"jei_dnn": joint, "decoupled_gates": not joint, "boosted": network.boosted})
        self.tradeoff, self.gate_objective, self.rescale = tradeoff, gate_objective, rescale
        self.optimizer, self.final_learning_rate = optimizer, final_learning_rate
        self.warmup_epochs, self.phase_batches, self.joint = warmup_epochs, phase_batches, joint
        self.clip = clip
        self.num_gates = network.num_exits - 1
        self.early_stopping = EarlyStopping(self.num_gates, warmup_patience)
        self.warming_up = warmup_epochs > 0
        self.joint_batches = self._pending = 0
        self._targets = Records(["targets"])
        self.register_buffer("positive_weight", torch.ones(self.num_gates))
        self.register_buffer("costs", network.costs.normalised().float(), persistent=False)

    def setup(self, stage: str) -> None:
        """Say where a trade-off does nothing."""
        super().setup(stage)
        enough = 1 / (self.costs[-1] - self.costs[0]).item()
        if stage == "fit" and self.gate_objective == "zero_one" and self.tradeoff < enough:
            remedy = f"only breaks ties under zero_one; every value below {enough:.2f} trains the same gates"
            warnings.warn(f"model.tradeoff = {self.tradeoff:g}: {remedy}, and larger ones leave earlier", stacklevel=2)

    def on_fit_start(self) -> None:
        """Say what a training without validation lacks."""
        super().on_fit_start()
        if not self.trainer.enable_validation:
            lack = "the warm-up lasts for all warmup_epochs and the gates' positive weights stay at 1"
            warnings.warn(f"without validation batches {lack}", stacklevel=2)

    def policies(self) -> dict[str, Policy]:
        """The learned gates."""
        return {"learned": SequentialGates(clip=self.clip)}

    def configure_callbacks(self) -> "list[Callback]":
        """Add the one that keeps the warm-up from callbacks that monitor routed figures."""
        from lightning_modules.callbacks import WarmUp

        others: Any = super().configure_callbacks()
        return [*others, WarmUp()]

    def is_routed(self, figure: str | None) -> bool:
        """Whether a figure of the validation is an operating point's, which means nothing before the gates train."""
        parts = (figure or "").split("/")
        return parts[0] == "val" and (len(parts) == 2 or bool({*parts[1:]} & {*self.policies()}))

    @property
    def untrained(self) -> str | None:
        """That no phase has trained the gates."""
        return None if self.joint_batches else "its gates have never trained: the warm-up has not ended"

    @property
    def wish(self) -> str:
        """A policy that needs no gates."""
        return "--policy max_probability --budget 0.5"

    @property
    def phase(self) -> Phase:
        """What the next batch trains."""
        if self.warming_up:
            return "warmup"
        return "inference_modules" if self.joint and self.joint_batches // self.phase_batches % 2 else "gates"

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The phase's loss; what it does not train gets no gradient, and the optimizer leaves it alone."""
        inputs, labels = batch
        phase = self.phase
        loss = self.phase_loss(phase, self.extract(inputs), labels)
        if phase != "warmup":
            self._pending += 1
            if self.trainer.is_last_batch or (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
                self.joint_batches, self._pending = self.joint_batches + self._pending, 0
        self.log_losses(phase, batch_idx, loss)
        return loss

    def phase_loss(self, phase: Phase, extracted: ExitFeatures, labels: Tensor) -> Tensor:
        """The loss of a phase; the last exit is frozen and left out.

        What `rescale` sums over more than five early exits is scaled to five of them, as `warmup_weights` are to six
        exits: steps that grow with the number of exits diverge. [inferred]
        """
        if phase == "gates":
            with torch.no_grad():
                logits = self.network.exit_logits(extracted)
            scores = self.network.gate(logits[:, :-1])
            return gate_loss(scores, self.targets(logits, labels), self.positive_weight, rarer=True)
        early = self.network.early_logits(extracted)
        if phase == "warmup":
            weights = warmup_weights(self.num_gates + 1).to(early)
            return weighted_sum_loss(early, labels, weights, self.class_weight)
        with torch.no_grad():
            distribution = exit_distribution(self.network.gate(early))
        loss = exit_weighted_loss(early, labels, distribution[:, :-1], self.rescale, self.class_weight)
        return loss * min(1.0, 5 / self.num_gates) if self.rescale else loss

    def targets(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Gate targets, `(batch, gates)`."""
        best = best_exits(logits.detach(), labels, self.costs, self.tradeoff, self.gate_objective)
        return gate_targets(best, self.num_gates)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold the modules that have stopped."""
        if self.warming_up:
            for module, stopped in zip(self.network.inference_modules, self.early_stopping.stopped, strict=True):
                if stopped:
                    module.zero_grad()

    def record(self, outputs: ExitOutputs, labels: Tensor) -> None:
        """Record the gate targets too, whose frequencies give the positive weights."""
        super().record(outputs, labels)
        self._targets.update(targets=self.targets(outputs.logits, labels))

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Refresh the positive weights; in the warm-up, judge the modules."""
        targets = self._targets.compute()["targets"]
        self._targets.reset()
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        self.positive_weight.copy_(positive_weights(targets.sum(0), len(targets)))
        self.log_dict({f"train/positive_weight/gate_{i}": w for i, w in enumerate(self.positive_weight)})
        if self.warming_up:
            accuracies = records["statistics"][:, :-1, 1].double().mean(0).tolist()
            self.early_stopping.update(list(self.network.inference_modules), accuracies, self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Give the modules that have stopped their best weights, and all of them where the warm-up is over.

        Not before, so that what was validated last is what the epoch's checkpoint holds.
        """
        if not self.warming_up:
            return
        self.warming_up = self.current_epoch < self.warmup_epochs and not all(self.early_stopping.stopped)
        self.early_stopping.restore(list(self.network.inference_modules), stopped_only=self.warming_up)
        if not self.warming_up:
            self.optimizers().optimizer.state.clear()  # type: ignore[union-attr]

    def on_train_epoch_end(self) -> None:
        """Log the phase: 0 in the warm-up, 1 for gates, 2 for inference modules."""
        if self.warming_up:
            self.early_stopping.end_epoch(self.current_epoch)
        self.log("train/phase", float(get_args(Phase).index(self.phase)))

    def configure_optimizers(self) -> Any:
        """One optimizer of two groups, the inference modules' and the gates', under a cosine schedule."""
        parts = self.network.inference_modules, self.network.gate
        optimizer = self.optimizer([{"params": list(part.parameters())} for part in parts])
        return {"optimizer": optimizer, "lr_scheduler": self.cosine(optimizer, self.final_learning_rate)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the schedule's state."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["jei_dnn"] = {
            "warming_up": self.warming_up,
            "joint_batches": self.joint_batches,
            "early_stopping": self.early_stopping.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the schedule.

        Raises:
            UserError: Training would continue that of an earlier version.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["jei_dnn"]
        self.warming_up, self.joint_batches = state["warming_up"], state["joint_batches"]
        if self._trainer is not None and self._trainer.state.fn == "fit":
            if len(checkpoint["optimizer_states"]) > 1:
                version = checkpoint[IDENTITY]["version"]
                raise UserError("ckpt_path", f"of eenet {version}", "has two optimizers, not one; train anew")
            self.early_stopping.load_state_dict(state["early_stopping"])
