"""What is shared by routines whose samples leave where the confidence reaches a threshold."""

import warnings

import torch
from torch import Tensor

from eenet.calibration import Scored, check_budget, policy_for_budget
from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, Threshold
from lightning_modules.routine import ExitRoutine


class ThresholdExits(ExitRoutine):
    """An operating point for each budget: one threshold for all exits, the most accurate within it on validation.

    A budget below the first exit's cost cannot be met: it is warned of, and its threshold stays infinite.

    Args:
        network: The network; its gate must be a `ConfidenceGate`.
        freeze_backbone: Keep the backbone's weights and its normalisation statistics as they are.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        features: Where the features of a frozen backbone are kept for training and validation.
        budgets: Mean MACs allowed, as fractions of the full network's; `None` for one half.

    Raises:
        UserError: A learned gate, no early exit, or a budget that is outside (0, 1].
    """

    chooses = True
    thresholds: Tensor

    def __init__(
        self,
        network: EarlyExitNetwork,
        freeze_backbone: bool,
        backbone_checkpoint: FilePath | None,
        features: Features,
        budgets: list[float] | None,
    ) -> None:
        super().__init__(network, freeze_backbone, backbone_checkpoint, features)
        self.require_early_exits()
        if not isinstance(network.gate, ConfidenceGate):
            kind = type(network.gate).__name__
            raise UserError("model.network.gate", kind, "thresholds need eenet.gates.ConfidenceGate")
        self.budgets = [check_budget(budget, "model.budgets") for budget in (budgets or [0.5])]
        self.register_buffer("thresholds", torch.full((len(self.budgets),), float("inf")))

    def setup(self, stage: str) -> None:
        """Warn of budgets that even leaving at the first exit would break."""
        super().setup(stage)
        for name, why in self.unmet.items():
            warnings.warn(f"model.budgets: {name} {why}", stacklevel=2)

    @property
    def unmet(self) -> dict[str, str]:
        """Why budgets cannot be met, by the names of their points."""
        least = self.network.costs.fractions()[0].item()
        why = f"cannot be met: the first exit alone costs {least:.3f} of the full network's MACs"
        return {f"budget-{budget:g}": why for budget in self.budgets if budget < least}

    @property
    def wish(self) -> str:
        """The budgets."""
        return f"--budget {','.join(f'{budget:g}' for budget in self.budgets)}"

    def policies(self) -> dict[str, Policy]:
        """A shared threshold for each budget."""
        gates = self.network.num_exits - 1
        return {
            f"budget-{budget:g}": Threshold([value] * gates)
            for budget, value in zip(self.budgets, self.thresholds.tolist(), strict=True)
        }

    def choose_points(self, records: dict[str, Tensor]) -> None:
        """Choose the thresholds."""
        predictions, scores, statistics = (records[key].cpu() for key in ("predictions", "scores", "statistics"))
        scored = Scored(predictions, scores, statistics[..., 1] > 0, self.network.costs.fractions())
        shared = Threshold([0.0] * scores.shape[1])
        for place, budget in enumerate(self.budgets):
            if f"budget-{budget:g}" not in self.unmet:
                self.thresholds[place] = policy_for_budget(shared, scored, budget).thresholds[0]  # type: ignore[index]
