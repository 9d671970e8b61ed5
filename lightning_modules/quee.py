"""QuEE: bit-widths and exits chosen per sample by predicted error and BitOPs (Regol et al., arXiv 2406.14404)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eenet.calibration import ChosenOn, OperatingPoint
from eenet.calibration.curves import (
    THRESHOLDS,
    Point,
    curve_rows,
    halves_at_budget,
    path_curve,
    point_for_budget,
)
from eenet.calibration.points import check_names
from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.gates import ErrorGate
from eenet.metrics import Records
from eenet.network import ExitFeatures, ExitOutputs
from eenet.objectives import ClassWeights, weighted_sum_loss
from eenet.policies import Policy, Threshold
from eenet.policies.predicted_errors import TRADEOFFS
from eenet.quantization import QuantizedNetwork, SimplePredictors, judge_predictors, other_predictions
from eenet.quantization.nodes import Nodes, curves_of, fit_predictors, named_curves
from eenet.quantization.predictors import Targets
from eenet.reporting import Results, chosen_rows, evaluate, static_exits
from eenet.reporting.quee import accuracy_bitops_figure, path_histogram_figure, predictor_figure
from lightning_modules.routine import ExitRoutine
from lightning_modules.schedules import OptimizerCallable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATH_FIGURES = {
    "accuracy_bitops": accuracy_bitops_figure,
    "path_histogram": path_histogram_figure,
    "predictor_calibration": predictor_figure,
}
"""Figures beside those of every routine."""

LEAST_HELD_OUT = 32
"""Validation samples without which no predictor is fitted."""


class QuEE(ExitRoutine):
    """Train inference modules on the features of every path, then error predictors on the validation split.

    Codes and ranges come from training inputs without labels before anything is trained. At the validation of the whole
    split on the final weights predictors are fitted to it in five folds, so that each sample is predicted by what has
    not seen it, and once to all. On these predictions each budget finds its point: the most accurate of first widths
    and lambdas, of thresholds along each path and of static networks. Budgets may differ at test time: the curves are
    in the checkpoint.

    Args:
        network: The network; its backbone is frozen.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        budgets: Mean BitOPs allowed, as fractions of the float network's; an operating point for each.
        calibration_batches: Evaluation batches of training inputs that the quantizer is calibrated with.
        targets: What predictors learn: `mixed`, half of each error and half of one minus the tempered probability of
            the true class, or `kmeans`, error rates of clusters. [inferred]
        optimizer: Makes the optimizer of the inference modules.
        final_learning_rate: Where the cosine schedule ends.
        features: `off`, `memory` or `disk`: run every path of the frozen backbone once per sample and train from what
            its exits read; or a mapping, see `eenet.features.FeatureOptions`.
        class_weights: Of the cross-entropies: `none`, `balanced` (inversely to the classes' frequencies in the training
            split), or a list of a weight for each class.

    Raises:
        UserError: No early exit, a budget that is not positive, or an empty calibration set.
    """

    method = "quee"
    chooses = True
    network: QuantizedNetwork
    path_points: Tensor
    threshold_points: Tensor
    static_points: Tensor
    steps: Tensor
    out_of_fold: Tensor
    temperatures: Tensor
    clusters: Tensor
    weights: Tensor

    def __init__(
        self,
        network: QuantizedNetwork,
        backbone_checkpoint: FilePath | None = None,
        budgets: list[float] | None = None,
        calibration_batches: int = 4,
        targets: Targets = "mixed",
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4),
        final_learning_rate: float = 2e-4,
        features: Features = "off",
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__(network, freeze_backbone=True, backbone_checkpoint=backbone_checkpoint, features=features)
        self.weigh_classes(class_weights)
        if network.num_exits == 1:
            raise UserError("model.network.exits", network.exit_stages, "needs at least one early exit")
        if calibration_batches < 1:
            raise UserError(
                "model.calibration_batches", calibration_batches, "an empty calibration set gives no ranges"
            )
        self.budgets = budgets or [0.1]
        for budget in self.budgets:
            if not budget > 0:
                raise UserError("model.budgets", budget, "is a fraction of the float network's BitOPs, above 0")
        check_names(self.budgets, "model.budgets")
        network.calibration_batches = calibration_batches
        self.optimizer, self.final_learning_rate, self.targets = optimizer, final_learning_rate, targets
        self.simple = nn.ModuleList(
            SimplePredictors(len(network.tree.reachable(node))) for node in range(network.tree.num_early)
        )
        self._known = Records(["features", "log_probabilities", "labels"])
        tree = network.tree
        sizes = {
            "path": len(network.widths) * len(TRADEOFFS),
            "threshold": len(tree.full) * len(THRESHOLDS),
            "static": len(tree.nodes),
        }
        for name, size in sizes.items():
            self.register_buffer(f"{name}_points", torch.zeros(size, len(Point._fields), dtype=torch.float64))
        self.register_buffer("out_of_fold", torch.zeros(0, tree.num_early, len(tree.nodes)))
        self.register_buffer("temperatures", torch.ones(len(tree.nodes), dtype=torch.float64))
        self.register_buffer("clusters", torch.zeros(tree.num_early, dtype=torch.long))
        self.register_buffer("steps", torch.zeros(tree.num_early, dtype=torch.long))
        heads = [(network.tree.exit(node), network.tree.nodes[node][-1]) for node in range(network.tree.num_early)]
        self.register_buffer("weights", torch.tensor([1 / heads.count(head) for head in heads]), persistent=False)

    @property
    def figures(self) -> "Mapping[str, Callable[[Results], Figure]]":
        """As every routine's; where a point is chosen, and so predictors are fitted, those of paths too."""
        return {**super().figures, **PATH_FIGURES} if chosen_rows(self.results) else super().figures

    @property
    def gate(self) -> ErrorGate:
        """The network's predictors."""
        assert isinstance(self.network.gate, ErrorGate)
        return self.network.gate

    @property
    def unmet(self) -> dict[str, str]:
        """Why budgets cannot be met, by the names of their points."""
        cheapest = self.network.costs.fractions("bitops").min().item()
        if self.fitted:
            cheapest = min(point.cost for point in self.curves()["union"])
        why = f"cannot be met: the cheapest path costs {cheapest:.4f} of the float network's BitOPs"
        return {f"budget-{budget:g}": why for budget in self.budgets if budget < cheapest}

    def policies(self) -> dict[str, Policy]:
        """For each budget the first width and lambda that are most accurate on the validation split.

        Before the predictors are fitted, and for a budget that they cannot meet, the widest and lambda 0.
        """
        curve, found = self.curves()["quee"], dict[str, Policy]()
        least = min(point.cost for point in curve)
        for budget in self.budgets:
            setting = self.network.widths[0], 0.0
            if self.fitted and budget >= least:
                point = point_for_budget(curve, budget, "model.budgets")
                setting = point.width, point.knob
            found[f"budget-{budget:g}"] = self.network.policy(*setting)
        return found

    def own_points(self) -> dict[str, OperatingPoint]:
        """For each budget the most accurate of all curves; before the predictors are fitted nothing has chosen them."""
        routed = {name: OperatingPoint(policy) for name, policy in self.policies().items()}
        if not self.fitted:
            return routed
        curves, exits = self.curves(), self.network.num_exits
        found = {}
        for budget, (name, own) in zip(self.budgets, routed.items(), strict=True):
            if name not in self.unmet:
                point = point_for_budget(curves["union"], budget, "model.budgets")
                if point in curves["thresholds"]:
                    own = OperatingPoint(Threshold([point.knob] * (exits - 1)), path=self.network.tree.full[point.path])
                elif point in curves["static"]:
                    stay = [float("inf") if exit < point.knob else -float("inf") for exit in range(exits - 1)]
                    own = OperatingPoint(Threshold(stay), path=self.network.tree.full[point.path])
            found[name] = replace(own, chosen_on=self.validated_on)
        return found

    def validation_rows(self, records: dict[str, Tensor]) -> Results:
        """As every routine's, also for points along one path."""
        rows = super().validation_rows(records)
        if not self.fitted:
            return rows
        for number, (name, point) in enumerate(self.own_points().items()):
            if point.path is not None:
                chain, nodes = point.network(self.network), self.network.tree.along(point.path)
                statistics, predictions = records["statistics"][:, nodes], records["predictions"][:, nodes]
                own = evaluate(statistics, predictions, statistics[:, :-1, 0], {name: point.policy}, chain.costs)
                row = rows["operating_points"][number] = own["operating_points"][0]
                row |= point.fields(row["exit_fractions"], self.network.num_exits)
        return rows

    @property
    def wish(self) -> str:
        """The budgets."""
        return f"--budget-bitops {','.join(f'{budget:g}' for budget in self.budgets)}"

    @property
    def fitted(self) -> bool:
        """Whether the predictors have been fitted."""
        return bool(self.path_points[:, 0].any())

    @property
    def too_early(self) -> str | None:
        """A training's validations before its last epoch fit no predictors."""
        if self.trainer.state.fn != "fit" or self.current_epoch + 1 == self.trainer.max_epochs:
            return None
        return "predictors are fitted after the last epoch"

    def curves(self) -> dict[str, list[Point]]:
        """The curves on validation samples, by name."""
        found = (self.path_points.tolist(), self.threshold_points.tolist(), self.static_points.tolist())
        return named_curves(self.network.tree, *([Point.of(row) for row in rows] for rows in found))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum over inference modules of the cross-entropy, each on the features of all paths that lead to it."""
        inputs, labels = batch
        logits = self.network.exit_logits(self.extract(inputs))
        trained = logits[:, : self.network.tree.num_early]
        loss = weighted_sum_loss(trained, labels, self.weights, self.class_weight)
        self.log_losses("inference_modules", batch_idx, loss)
        return loss

    def judge(self, inputs: Any, labels: Tensor) -> ExitOutputs:
        """As every routine, and record what the predictors read."""
        extracted = self.extract(inputs)
        logits = self.network.exit_logits(extracted)
        known = self.network.known(extracted, logits)
        self._known.update(
            features=torch.cat([rows.features for rows in known], dim=1),
            log_probabilities=logits.log_softmax(-1),
            labels=labels,
        )
        outputs = ExitOutputs(logits, logits.new_empty(len(logits), 0))  # predicted once, from the records
        self.record(outputs, labels)
        return outputs

    def nodes(self, records: dict[str, Tensor]) -> Nodes:
        """The samples that were judged last, usable for training."""
        if self._known.filled:
            with torch.inference_mode(False):
                computed = {**self._known.compute(), "statistics": records["statistics"]}
                found = {name: rows.to(self.weights.device).clone() for name, rows in computed.items()}
                statistics = found["statistics"]
            self._known.reset()
            tree, dims = self.network.tree, self.network.backbone.feature_dims
            stages = [self.network.exit_stages[tree.exit(node)] for node in range(tree.num_early)]
            features = found["features"].split([dims[stage] for stage in stages], dim=1)
            log_p, labels = found["log_probabilities"], found["labels"]
            known = self.network.known(ExitFeatures(list(features), log_p[:, -1]), log_p)
            self._nodes = Nodes(statistics[..., 1], statistics[..., 0], known, log_p, labels)
        return self._nodes

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Add the predicted errors of all samples: those of the folds where the predictors have learned from them."""
        nodes = self.nodes(records)
        learned = self.fitted and self.trial() is None and self.current and len(self.out_of_fold) == len(nodes.labels)
        records["scores"] = (self.out_of_fold.to(nodes.correct) if learned else self.predicted(nodes)).cpu()

    def choose_points(self, records: dict[str, Tensor]) -> None:
        """Fit the predictors on a whole validation of the final weights."""
        if self.trial() is None and not (self.fitted and self.current):
            with torch.inference_mode(False):
                self.fit_predictors(self.nodes(records))
                records["scores"] = self.out_of_fold.cpu()

    def fit_predictors(self, nodes: Nodes) -> None:
        """Fit the predictors on the validation samples, and take the curves of what did not see them.

        Raises:
            UserError: Too few samples.
        """
        total, tree = len(nodes.correct), self.network.tree
        if total < LEAST_HELD_OUT:
            remedy = f"gives {total} samples and predictors need {LEAST_HELD_OUT}; hold out more of the training split"
            raise UserError("data.validation_fraction", total, remedy)
        fitted = fit_predictors(self.network, nodes, self.targets)
        self.temperatures.copy_(fitted.temperatures)
        self.clusters.copy_(torch.tensor(fitted.clusters))
        self.steps.copy_(torch.tensor(fitted.steps))
        scores = fitted.unseen
        for node, known in enumerate(nodes.known):
            self.simple[node].fit(known, 1 - nodes.correct[:, tree.reachable(node)])  # type: ignore[operator]
        self.out_of_fold = scores
        for name, points in zip(("path", "threshold", "static"), curves_of(self.network, nodes, scores), strict=True):
            getattr(self, f"{name}_points").copy_(torch.tensor(points, dtype=torch.float64))

    def fit_on(self, batches: Iterable[Any], split: str | None) -> bool:
        """Fit the predictors on all batches of the validation split, unless they are fitted on the present weights.

        Raises:
            UserError: Too few samples.
        """
        if self.fitted and not self.objections(self.own_points(), split):
            return False
        with torch.no_grad():
            for inputs, labels in batches:
                self.judge(inputs, labels)
        nodes = self.nodes(self._records.compute())
        self._records.reset()
        self.fit_predictors(nodes)
        self.validated_on = ChosenOn(self.network_digest(), split, len(nodes.correct))
        return True

    def unseen_scores(self, samples: int) -> Tensor | None:
        """The predictions of the folds."""
        return self.out_of_fold if len(self.out_of_fold) == samples else None

    @torch.no_grad()
    def predicted(self, nodes: Nodes) -> Tensor:
        """The errors that the gate predicts, `(samples, early nodes, nodes)`."""
        return self.gate(nodes.known)

    def more_results(self, records: dict[str, Tensor]) -> Results:
        """Static networks of each width, and, once the predictors are fitted, curves and the predictors' quality."""
        network, tree, nodes = self.network, self.network.tree, self.nodes(records)
        found: Results = {
            "static_widths": {
                str(width): static_exits(records["statistics"], network.costs, tree.along((width,) * tree.segments))
                for width in tree.widths
            }
        }
        if not self.fitted:
            return found
        scores = records["scores"].to(self.weights.device) if records["scores"].numel() else self.predicted(nodes)
        curves, errors = named_curves(self.network.tree, *curves_of(self.network, nodes, scores)), 1 - nodes.correct
        simple: list[SimplePredictors] = list(self.simple)  # type: ignore[arg-type]
        others = other_predictions(tree, simple, nodes.known, errors, nodes.tempered(self.temperatures))
        policy = network.policy(network.widths[0], 0.0)
        return found | {
            "curves": {name: curve_rows(points, tree) for name, points in curves.items() if name != "union"},
            "curves_of_other_predictors": {
                name: curve_rows(path_curve(policy, other, nodes.correct), tree) for name, other in others.items()
            },
            "at_budgets": [halves_at_budget(budget, tree, self.curves(), curves) for budget in self.budgets],
            "predictors": {
                "targets": self.targets,
                "clusters": self.clusters.tolist(),
                "steps": self.steps.tolist(),
                **judge_predictors(tree, scores, simple, nodes.known, errors),
            },
        }

    def on_test_start(self) -> None:
        """As every routine.

        Raises:
            UserError: The principal point is not chosen: there are no predictors then.
        """
        self.require_principal()
        super().on_test_start()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every routine.

        Raises:
            UserError: It is of an older version.
        """
        state = checkpoint["state_dict"]
        if "out_of_fold" not in state:
            raise UserError("ckpt_path", None, "is of an older version with other predictors; run `eenet fit` again")
        self.out_of_fold = torch.zeros_like(state["out_of_fold"])
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> Any:
        """The inference modules' optimizer under a cosine schedule."""
        optimizer = self.optimizer(self.network.inference_modules.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.cosine(optimizer, self.final_learning_rate)}
