"""The first baseline: inference modules trained alone, then confidence thresholds chosen on validation data."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from eenet.calibration import check_budget, threshold_for_budget
from eenet.errors import UserError
from eenet.features import Features
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.objectives import weighted_sum_loss
from eenet.policies import Policy, Threshold
from lightning_modules.routine import ExitRoutine


class DecoupledExits(ExitRoutine):
    """Train every exit's inference module on all samples; leave where the confidence reaches a threshold.

    One threshold for all exits and budget, the highest one whose mean cost on the validation split keeps the budget.

    Args:
        network: The network; its gate must be a `ConfidenceGate`.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        budgets: Mean MACs allowed, as fractions of the full network's; an operating point for each.
        optimizer: Makes the optimizer of the inference modules.
        final_learning_rate: Where the cosine schedule ends.
        features: `off`, `memory` or `disk`: run the frozen backbone once per sample and train from what its exits read;
            or a mapping of `store`, `views`, `dtype` and `folder`, see `eenet.features.FeatureOptions`.

    Raises:
        UserError: A learned gate, no early exit, or a budget that is outside (0, 1] or below the first exit's cost.
    """

    method = "decoupled_thresholds"
    thresholds: Tensor

    def __init__(
        self,
        network: EarlyExitNetwork,
        backbone_checkpoint: str | None = None,
        budgets: list[float] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4),
        final_learning_rate: float = 2e-4,
        features: Features = "off",
    ) -> None:
        super().__init__(network, freeze_backbone=True, backbone_checkpoint=backbone_checkpoint, features=features)
        self.require_early_exits()
        if not isinstance(network.gate, ConfidenceGate):
            kind = type(network.gate).__name__
            raise UserError("model.network.gate", kind, "decoupled thresholds need eenet.gates.ConfidenceGate")
        self.budgets = [check_budget(budget, "model.budgets") for budget in (budgets or [0.5])]
        self.optimizer, self.final_learning_rate = optimizer, final_learning_rate
        self.register_buffer("thresholds", torch.full((len(self.budgets),), float("inf")))

    def setup(self, stage: str) -> None:
        """Refuse a budget that even leaving at the first exit would break."""
        super().setup(stage)
        least = self.network.costs.fractions()[0].item()
        for budget in self.budgets:
            if budget < least:
                raise UserError(
                    "model.budgets", budget, f"the first exit alone costs {least:.3f} of the full network's MACs"
                )

    def policies(self) -> dict[str, Policy]:
        """A shared threshold for each budget."""
        gates = self.network.num_exits - 1
        return {
            f"budget-{budget:g}": Threshold([value] * gates)
            for budget, value in zip(self.budgets, self.thresholds.tolist(), strict=True)
        }

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum over exits of the cross-entropy; the backbone is frozen, so the exits do not touch each other."""
        inputs, labels = batch
        early = self(inputs).logits[:, :-1]
        loss = weighted_sum_loss(early, labels, early.new_ones(early.shape[1]))
        self.log_losses("inference_modules", batch_idx, loss)
        return loss

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Choose the thresholds."""
        scores, costs = records["scores"].cpu(), self.network.costs.fractions()
        chosen = [threshold_for_budget(scores, costs, budget) for budget in self.budgets]
        self.thresholds.copy_(torch.tensor(chosen))

    def configure_optimizers(self) -> Any:
        """The inference modules' optimizer under a cosine schedule."""
        optimizer = self.optimizer(self.network.inference_modules.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.cosine(optimizer, self.final_learning_rate)}
