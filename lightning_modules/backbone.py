"""Fine-tune a backbone, from scratch or from pretrained weights, before exits are put on it."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.files import FilePath
from eenet.network import EarlyExitNetwork
from eenet.policies import FixedExit, Policy
from lightning_modules.routine import ExitRoutine


class BackboneTraining(ExitRoutine):
    """Cross-entropy training of the whole backbone: a network whose only exit is its own head.

    Args:
        backbone: The backbone.
        backbone_checkpoint: Run folder or checkpoint that training starts from; `null` for the backbone's own weights.
        optimizer: Makes the optimizer; its learning rate is the schedule's peak.
        warmup: Share of all steps over which the learning rate rises linearly, before it falls as a cosine.
        label_smoothing: Probability mass spread over all classes.

    Raises:
        UserError: `warmup` or `label_smoothing` is outside [0, 1).
    """

    method = "backbone"

    def __init__(
        self,
        backbone: StagedBackbone,
        backbone_checkpoint: FilePath | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.05),
        warmup: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(EarlyExitNetwork(backbone, exits=[]), False, backbone_checkpoint)
        for field, value in (("warmup", warmup), ("label_smoothing", label_smoothing)):
            if not 0 <= value < 1:
                raise UserError(f"model.{field}", value, "must be in [0, 1)")
        self.optimizer, self.warmup, self.label_smoothing = optimizer, warmup, label_smoothing

    def policies(self) -> dict[str, Policy]:
        """The full network alone."""
        return {"full": FixedExit()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of the backbone's own head."""
        inputs, labels = batch
        loss = F.cross_entropy(self.network.backbone(inputs), labels, label_smoothing=self.label_smoothing)
        self.log_losses("backbone", batch_idx, loss)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, under a one-cycle schedule over all steps."""
        optimizer = self.optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches) + 1  # the schedule takes a step after the last batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=max(self.warmup, 2 / steps),
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
