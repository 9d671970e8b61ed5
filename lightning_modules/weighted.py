"""L2W-DEN: a weight network learns which samples each exit should fit (Han et al., ECCV 2022), on a frozen backbone."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

from eenet.backbones.base import select
from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.gates import confidence
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.objectives import WeightNetwork, assign_exits, assigned_loss, cross_entropies, geometric_shares
from lightning_modules.batches import normalises_batches
from lightning_modules.methods import method_name
from lightning_modules.schedules import OptimizerCallable
from lightning_modules.thresholds import ThresholdExits

if TYPE_CHECKING:
    from lightning.pytorch import Callback


class WeightedExits(ThresholdExits):
    """Train inference modules on weighted samples, and the weights on what those modules do for samples that leave.

    Each half of a batch trains the inference modules once while the other judges (section 3.3 and algorithm 1):
    a virtual step of plain gradient descent under the weights; the loss, after it, of the other half's samples at the
    exits that they would leave at; a step of the weight network against that loss, through the virtual step; then the
    true step under the new weights. At inference confidence thresholds decide, as in `DecoupledExits`.

    Args:
        network: The network; its gate must be a `ConfidenceGate`.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        budgets: Mean MACs allowed, as fractions of the full network's; an operating point for each; half by default.
        exit_ratio: Samples judged at an exit for each one judged at the exit before it.
        weight_hidden: Width of the weight network's hidden layer.
        weight_strength: How far weights go from 1; in [0, 1).
        optimizer: Makes the optimizer of the inference modules, whose learning rate the virtual step takes too.
        final_learning_rate: Where the cosine schedule of the inference modules ends; the weight network's ends at 0.
        weight_optimizer: Makes the optimizer of the weight network.
        features: `off`, `memory` or `disk`: run the frozen backbone once per sample and train from what its exits read;
            or a mapping of `store`, `views`, `dtype` and `folder`, see `eenet.features.FeatureOptions`.

    Raises:
        UserError: A learned gate, no early exit, a budget that is outside (0, 1] or below the first exit's cost, a
            ratio that is not positive, a width below 1, a strength outside [0, 1), or more than one device.
    """

    updates = 4  # both optimizers in each half

    def __init__(
        self,
        network: EarlyExitNetwork,
        backbone_checkpoint: FilePath | None = None,
        budgets: list[float] | None = None,
        exit_ratio: float = 0.75,
        weight_hidden: int = 500,
        weight_strength: float = 0.3,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4),
        final_learning_rate: float = 2e-4,
        weight_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-4, weight_decay=1e-4),
        features: Features = "off",
    ) -> None:
        super().__init__(network, True, backbone_checkpoint, features, budgets)
        self.refuse_connections()
        if not 0 < exit_ratio < float("inf"):
            raise UserError("model.exit_ratio", exit_ratio, "must be a finite number above 0")
        self.automatic_optimization = False
        self.method = method_name({"l2w_den": True, "boosted": network.boosted})
        self.shares = geometric_shares(network.num_exits, exit_ratio)
        self.weight_network = WeightNetwork(network.num_exits, network.num_exits - 1, weight_hidden, weight_strength)
        self.optimizer, self.final_learning_rate = optimizer, final_learning_rate
        self.weight_optimizer = weight_optimizer
        self._clip: float | None = None

    def configure_callbacks(self) -> "list[Callback]":
        """Take gradient clipping over, which Lightning refuses with steps that are taken by hand.

        Raises:
            UserError: Gradients are to be accumulated.
        """
        trainer: Any = self.trainer
        if trainer.accumulate_grad_batches != 1:
            remedy = "must be 1, since each half of a batch takes its own steps; set a larger data.batch_size instead"
            raise UserError("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, remedy)
        self._clip, trainer.gradient_clip_val = trainer.gradient_clip_val, None  # until that check is over
        others: Any = super().configure_callbacks()
        return list(others)

    def setup(self, stage: str) -> None:
        """Refuse several devices: gradients through the virtual step are not averaged over them."""
        super().setup(stage)
        self.trainer.gradient_clip_val = self._clip
        if stage == "fit" and self.trainer.world_size > 1:
            raise UserError("trainer.devices", self.trainer.world_size, "sample weights are learned on one device")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Both halves of the batch in turn; a batch whose halves are too small to be learned from is left out."""
        inputs, labels = batch
        extracted = self.extract(inputs)
        halves = torch.arange(len(labels), device=labels.device).chunk(2)
        if len(halves) < 2 or (len(halves[1]) == 1 and normalises_batches(self.network)):
            return
        for rows, judges in (halves, halves[::-1]):
            sample = select(extracted, rows), labels[rows]
            meta_loss = self.train_weights(sample, (select(extracted, judges), labels[judges]))
            self.log_losses("weights", batch_idx, meta_loss)
            self.log_losses("inference_modules", batch_idx, self.train_modules(*sample))

    def train_weights(self, sample: tuple[ExitFeatures, Tensor], judges: tuple[ExitFeatures, Tensor]) -> Tensor:
        """One step of the weight network; returns its loss.

        Args:
            sample: What the virtual step is taken on.
            judges: What judges it.
        """
        modules_optimizer, optimizer = self.optimizers()  # type: ignore[attr-defined]
        optimizer.zero_grad()
        rate = modules_optimizer.param_groups[0]["lr"]
        loss = self.meta_loss(self.virtual_step(*sample, rate), *judges)
        self._step(loss, optimizer)
        return loss

    def train_modules(self, extracted: ExitFeatures, labels: Tensor) -> Tensor:
        """One step of the inference modules under constant weights; returns their loss."""
        optimizer, _ = self.optimizers()  # type: ignore[attr-defined]
        optimizer.zero_grad()
        loss = self.weighted_loss(extracted, labels, train_weights=False)
        self._step(loss, optimizer)
        return loss

    def _step(self, loss: Tensor, optimizer: Any) -> None:
        self.manual_backward(loss)
        self.clip_gradients(optimizer)
        optimizer.step()

    def weighted_loss(self, extracted: ExitFeatures, labels: Tensor, train_weights: bool) -> Tensor:
        """Sum over early exits of the mean weighted cross-entropy; the last exit only informs the weights.

        Args:
            extracted: What the exits read.
            labels: `(batch,)`.
            train_weights: Let the gradient reach the weight network.
        """
        losses = cross_entropies(self.network.exit_logits(extracted), labels)
        with torch.set_grad_enabled(train_weights):
            weights = self.weight_network(losses)
        return (weights * losses[:, :-1]).mean(0).sum()

    def virtual_step(self, extracted: ExitFeatures, labels: Tensor, rate: float) -> dict[str, Tensor]:
        """The inference modules' parameters after a step of gradient descent, as functions of the weight network."""
        parameters = {f"network.inference_modules.{k}": p for k, p in self.network.inference_modules.named_parameters()}
        loss = self.weighted_loss(extracted, labels, train_weights=True)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        return {name: p.detach() - rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}

    def meta_loss(self, parameters: dict[str, Tensor], extracted: ExitFeatures, labels: Tensor) -> Tensor:
        """Loss of samples at the exits that they would leave at, with the inference modules' parameters given."""
        logits = functional_call(self, parameters, (extracted,)).logits
        return assigned_loss(logits, labels, assign_exits(confidence(logits.detach()), self.shares))

    def on_train_epoch_end(self) -> None:
        """Step the schedules, as Lightning does: not where the training ends in the midst of an epoch."""
        if not self.trainer.is_last_batch:
            return
        for schedule in self.lr_schedulers():  # type: ignore[union-attr]
            schedule.step()

    def configure_optimizers(self) -> Any:
        """Optimizers of the inference modules and of the weight network, each under a cosine schedule."""
        modules = self.optimizer(self.network.inference_modules.parameters())
        weights = self.weight_optimizer(self.weight_network.parameters())
        return [modules, weights], [self.cosine(modules, self.final_learning_rate), self.cosine(weights, 0.0)]
