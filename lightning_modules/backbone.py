"""Fine-tune a backbone, from scratch or from pretrained weights, before exits are put on it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.files import FilePath
from eenet.network import EarlyExitNetwork
from eenet.objectives import ClassWeights
from eenet.policies import FixedExit, Policy
from lightning_modules.routine import ExitRoutine
from lightning_modules.schedules import OptimizerCallable, one_cycle


class BackboneTraining(ExitRoutine):
    """Cross-entropy training of the whole backbone: a network whose only exit is its own head.

    Args:
        backbone: The backbone.
        backbone_checkpoint: Run folder or checkpoint that training starts from; `null` for the backbone's own weights.
        optimizer: Makes the optimizer; its learning rate is the schedule's peak.
        warmup: Share of all steps over which the learning rate rises to its peak; both ways are cosines.
        label_smoothing: Probability mass spread over all classes.
        class_weights: Of the cross-entropy: `none`, `balanced` (inversely to the classes' frequencies in
            the training split), or a list of a weight for each class.

    Raises:
        UserError: `warmup` or `label_smoothing` is outside [0, 1), or class weights that cannot be used.
    """

    method = "backbone"

    def __init__(
        self,
        backbone: StagedBackbone,
        backbone_checkpoint: FilePath | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.05),
        warmup: float = 0.1,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__(EarlyExitNetwork(backbone, exits=[]), False, backbone_checkpoint)
        for field, value in (("warmup", warmup), ("label_smoothing", label_smoothing)):
            if not 0 <= value < 1:
                raise UserError(f"model.{field}", value, "must be in [0, 1)")
        self.weigh_classes(class_weights)
        self.optimizer, self.warmup, self.label_smoothing = optimizer, warmup, label_smoothing

    def policies(self) -> dict[str, Policy]:
        """The full network alone."""
        return {"full": FixedExit()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of the backbone's own head."""
        inputs, labels = batch
        logits, smoothing = self.network.backbone(inputs), self.label_smoothing
        loss = F.cross_entropy(logits, labels, self.class_weight, label_smoothing=smoothing)
        self.log_losses("backbone", batch_idx, loss)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, under a one-cycle schedule over all steps."""
        optimizer = self.optimizer(self.parameters())
        schedule = one_cycle(optimizer, self.warmup, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
