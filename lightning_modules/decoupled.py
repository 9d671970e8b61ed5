"""Exits trained without their gates, on a frozen backbone or together with it; confidence thresholds decide."""

from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.network import EarlyExitNetwork
from eenet.objectives import ClassWeights, DeepSupervision, Supervision
from lightning_modules.methods import method_name
from lightning_modules.schedules import OptimizerCallable
from lightning_modules.thresholds import ThresholdExits


class DecoupledExits(ThresholdExits):
    """Train every exit's inference module on all samples; leave where the confidence reaches a threshold.

    One threshold for all exits and budget, the highest one whose mean cost on the validation split keeps the budget.
    Results name the method after what differs from plain cross-entropies on a frozen backbone (`decoupled`):
    `joint_finetuning`, `gradient_rescaling`, `boosted`, `zero_time_waste`, `past_future`, `deep_supervision_linear`,
    `self_distillation`. The ensemble of Zero Time Waste is fitted to training samples when the training ends.

    Args:
        network: The network; its gate must be a `ConfidenceGate`, or a `StoppingGate` (see `ThresholdExits`).
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        supervision: What teaches the exits, see `eenet.objectives.supervision`; `None` for the sum of all exits'
            cross-entropies.
        freeze_backbone: Train the inference modules alone; otherwise the backbone and its own head are trained with
            them, from `backbone_checkpoint` where it is given.
        budgets: Mean MACs allowed, as fractions of the full network's; an operating point for each; half by default.
        optimizer: Makes the optimizer of what is trained.
        final_learning_rate: Where the cosine schedule ends.
        features: `off`, `memory` or `disk`: run the frozen backbone once per sample and train from what its exits read;
            or a mapping of `store`, `views`, `dtype` and `folder`, see `eenet.features.FeatureOptions`.
        class_weights: Of the cross-entropies: `none`, `balanced` (inversely to the classes' frequencies in
            the training split), or a list of a weight for each class.

    Raises:
        UserError: A learned gate, no early exit, a budget that is outside (0, 1] or below the first exit's cost,
            features of a backbone that trains, gradient rescaling in one that does not, or class weights that cannot be
            used.
    """

    def __init__(
        self,
        network: EarlyExitNetwork,
        backbone_checkpoint: FilePath | None = None,
        supervision: Supervision | None = None,
        freeze_backbone: bool = True,
        budgets: list[float] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4),
        final_learning_rate: float = 2e-4,
        features: Features = "off",
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__(network, freeze_backbone, backbone_checkpoint, features, budgets)
        self.weigh_classes(class_weights)
        if self.features is not None and not freeze_backbone:
            raise UserError("model.features", self.features.store, "must be off where freeze_backbone is false")
        if network.gradient_rescaling and freeze_backbone:
            remedy = "does nothing to a frozen backbone; set model.freeze_backbone to false"
            raise UserError("model.network.gradient_rescaling", True, remedy)
        self.supervision = supervision or DeepSupervision()
        self.optimizer, self.final_learning_rate = optimizer, final_learning_rate
        self.method = method_name(
            {
                "joint_finetuning": not freeze_backbone,
                "gradient_rescaling": network.gradient_rescaling,
                network.link.name: True,
                self.supervision.name: True,
            }
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The supervision's loss and the connection's; a frozen backbone's own head is left out of it."""
        inputs, labels = batch
        logits, extra = self.network.connected(self.extract(inputs))
        trained = logits[:, :-1] if self.freeze_backbone else logits
        loss = self.supervision.loss(trained, labels, logits[:, -1], self.class_weight) + extra
        self.log_losses("inference_modules" if self.freeze_backbone else "network", batch_idx, loss)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer of the inference modules, and of a backbone that trains, under a cosine schedule."""
        optimizer = self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        return {"optimizer": optimizer, "lr_scheduler": self.cosine(optimizer, self.final_learning_rate)}
