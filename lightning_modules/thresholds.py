"""What is shared by routines whose samples leave where the score of a gate reaches a threshold."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from eenet.calibration import OperatingPoint, Scored, check_budget, cost_of, policy_for_budget
from eenet.calibration.ensemble import fit_ensemble, most_fitted
from eenet.calibration.points import check_names
from eenet.calibration.stopping import find_judge, fit_stopping, most_samples
from eenet.connections import Ensemble
from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.gates import ConfidenceGate, StoppingGate
from eenet.metrics import Records
from eenet.network import EarlyExitNetwork, ExitFeatures, ExitOutputs
from eenet.policies import Policy, Threshold
from lightning_modules.routine import ExitRoutine

BUDGETS = "budgets"
"""Key of a checkpoint under which the budgets of its thresholds stand."""


class ThresholdExits(ExitRoutine):
    """An operating point for each budget: one threshold for all exits, the most accurate within it on validation.

    A budget below the first exit's cost cannot be met: it is warned of, and its threshold stays infinite. One that a
    checkpoint was not trained with has no threshold until a whole validation chooses it.

    Args:
        network: The network; its gate must be a `ConfidenceGate`, or a `StoppingGate`, whose values are fitted to
            training samples at the validation of the final weights, at the price that is nearest to the first budget.
        freeze_backbone: Keep the backbone's weights and its normalisation statistics as they are.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        features: Where the features of a frozen backbone are kept for training and validation.
        budgets: Mean MACs allowed, as fractions of the full network's; `None` for one half.

    Raises:
        UserError: A learned gate, no early exit, a budget that is outside (0, 1], or two of one name.
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
        if not isinstance(network.gate, ConfidenceGate | StoppingGate):
            kind = type(network.gate).__name__
            remedy = "thresholds need eenet.gates.ConfidenceGate, or StoppingGate"
            raise UserError("model.network.gate", kind, remedy)
        if isinstance(network.gate, StoppingGate) and network.gate.recall:
            remedy = "is for finished runs: eenet calibrate --policy stopping_recall"
            raise UserError("model.network.gate.recall", True, remedy)
        self.budgets = [check_budget(budget, "model.budgets") for budget in (budgets or [0.5])]
        check_names(self.budgets, "model.budgets")
        self._never = set[str]()
        self._logits, self._validated = Records(["logits"]), torch.empty(0)
        self.register_buffer("thresholds", torch.full((len(self.budgets),), float("inf")))

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

    @property
    def ensemble(self) -> Ensemble | None:
        """That of the network's connection, which is fitted when the modules are trained."""
        return getattr(self.network.connection, "ensemble", None)

    def on_train_start(self) -> None:
        """Train the modules each for itself, those of a continued run too."""
        super().on_train_start()
        if self.ensemble is not None:
            self.ensemble.reset()

    def on_validation_epoch_start(self) -> None:
        """Fit the ensemble where that is due, before anything is judged."""
        super().on_validation_epoch_start()
        if self.ensemble is not None and not self.ensemble.fitted and (self.trial() or self.too_early) is None:
            data = self.training_data("connection", self.network.connection, most_fitted(self.ensemble))
            rows = [(self.network.exit_logits(found)[:, :-1].log_softmax(-1), labels) for found, labels in data]
            fit_ensemble(self.ensemble, *(torch.cat(parts) for parts in zip(*rows, strict=True)))

    def training_data(self, field: str, needs: Any, most: int) -> Iterable[tuple[ExitFeatures, Tensor]]:
        """Features and labels of at most so many training samples, by batches; a `UserError` where data give none."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "training_features"):
            remedy = "is fitted to training samples, which only a `SplitData` gives"
            raise UserError(f"model.network.{field}", type(needs).__name__, remedy)
        return data.training_features(self.network, self.features, most)

    @property
    def fitted(self) -> bool:
        """Whether the gate needs no values, or has them."""
        return not isinstance(self.network.gate, StoppingGate) or bool(self.network.gate.weight.any())

    @property
    def too_early(self) -> str | None:
        """A training's validations before its last epoch fit no values, and none but what ends it an ensemble."""
        if self.ensemble is not None and self.trainer.state.fn == "fit":
            return "the ensemble is fitted after the training"
        stops = isinstance(self.network.gate, StoppingGate)
        if not stops or self.trainer.state.fn != "fit" or self.current_epoch + 1 == self.trainer.max_epochs:
            return None
        return "values are fitted after the last epoch"

    def own_points(self) -> dict[str, OperatingPoint]:
        """As every routine; before values are fitted nothing has chosen them, nor those of new budgets."""
        return {
            name: point if self.fitted and name not in self._never else OperatingPoint(point.policy)
            for name, point in super().own_points().items()
        }

    def record(self, outputs: ExitOutputs, labels: Tensor) -> None:
        """As every routine, and the logits where values are to be fitted."""
        super().record(outputs, labels)
        if isinstance(self.network.gate, StoppingGate):
            self._logits.update(logits=outputs.logits)

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Keep the logits of all samples where values are to be fitted."""
        if isinstance(self.network.gate, StoppingGate):
            self._validated = self._logits.compute()["logits"]
            self._logits.reset()

    def fit_values(self, gate: StoppingGate, logits: Tensor, judge: int) -> Tensor:
        """Fit the gate's values at the price whose cost on validation samples is nearest to the first budget.

        Args:
            gate: The network's.
            logits: Of all exits on validation samples, `(samples, exits, classes)`.
            judge: The exit that judges, see `eenet.calibration.stopping.find_judge`.

        Returns:
            Its scores of the validation samples, `(samples, gates)`.
        """
        fractions = self.network.costs.fractions()
        found = self.training_data("gate", gate, most_samples(gate))
        training = torch.cat([self.network.exit_logits(extracted).float().cpu() for extracted, _ in found])
        values = fit_stopping(gate, training, fractions, judge=judge)
        scores, predictions = values(logits[:, :-1].cpu()), logits.argmax(-1).cpu()
        as_fitted = Threshold([0.0] * gate.num_gates)
        costs = [cost_of(as_fitted.exits(predictions, rows), fractions) for rows in scores.unbind(-1)]
        best = min(range(len(costs)), key=lambda price: abs(costs[price] - self.budgets[0]))
        gate.weight.copy_(values.gates[best].weight)
        gate.bias.copy_(values.gates[best].bias)
        return scores[..., best].to(logits)

    def choose_points(self, records: dict[str, Tensor]) -> None:
        """Fit the values where the gate has some, and choose the thresholds."""
        if isinstance(self.network.gate, StoppingGate) and self.trial() is None:
            judge = find_judge(records["statistics"][..., 1] > 0)
            records["scores"] = self.fit_values(self.network.gate, self._validated, judge)
        if not self.fitted:
            return
        if self.trial() is None:
            self._never.clear()
        predictions, scores, statistics = (records[key].cpu() for key in ("predictions", "scores", "statistics"))
        scored = Scored(predictions, scores, statistics[..., 1] > 0, self.network.costs.fractions())
        shared = Threshold([0.0] * scores.shape[1])
        for place, budget in enumerate(self.budgets):
            if f"budget-{budget:g}" not in self.unmet:
                self.thresholds[place] = policy_for_budget(shared, scored, budget).thresholds[0]  # type: ignore[index]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every routine, and say which budgets the thresholds are of."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[BUDGETS] = self.budgets

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every routine; thresholds go to their budgets, whatever others are asked for now."""
        super().on_load_checkpoint(checkpoint)
        if BUDGETS not in checkpoint:  # of a version that did not say
            return
        state = checkpoint["state_dict"]
        kept = dict(zip(checkpoint[BUDGETS], state["thresholds"], strict=True))
        self._never = {f"budget-{budget:g}" for budget in self.budgets if budget not in kept}
        never = state["thresholds"].new_tensor(float("inf"))
        thresholds = torch.stack([kept.get(budget, never) for budget in self.budgets])
        checkpoint["state_dict"] = {**state, "thresholds": thresholds}
