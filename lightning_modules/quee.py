"""QuEE: bit-widths and exits chosen per sample by predicted error and BitOPs (Regol et al., arXiv 2406.14404)."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

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
    static_curve,
    threshold_curve,
)
from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.gates import ErrorGate, Known
from eenet.metrics import Records
from eenet.network import ExitOutputs
from eenet.objectives import ClassWeights, weighted_sum_loss
from eenet.policies import Policy
from eenet.policies.predicted_errors import TRADEOFFS
from eenet.quantization import QuantizedNetwork, SimplePredictors, fit_predictor, judge_predictors, other_predictions
from eenet.reporting import Results, chosen_rows, static_exits
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


class Nodes(NamedTuple):
    """Samples at every node.

    Attributes:
        correct: 1 where a node is right, `(samples, nodes)`.
        confidence: Maximum probability at each node, `(samples, nodes)`.
        known: What the predictor of each early node reads.
    """

    correct: Tensor
    confidence: Tensor
    known: list[Known]

    def take(self, rows: Tensor) -> "Nodes":
        """Some of the samples."""
        known = [Known(*(values[rows] for values in node)) for node in self.known]
        return Nodes(self.correct[rows], self.confidence[rows], known)


class QuEE(ExitRoutine):
    """Train inference modules on the features of every path, then error predictors on the validation split.

    The activations' ranges come from training inputs without labels before anything is trained. At the validation of
    the whole split on the final weights one random half of the split teaches the predictors; the other half chooses the
    number of clusters and the weights, and gives the curve on which each budget finds its first width and lambda.
    Budgets may differ at test time: the whole curve is in the checkpoint.

    Args:
        network: The network; its backbone is frozen.
        backbone_checkpoint: Run folder or checkpoint that the backbone's weights come from.
        budgets: Mean BitOPs allowed, as fractions of the float network's; an operating point for each.
        calibration_batches: Evaluation batches of training inputs that give the activations' ranges.
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
    clusters: Tensor
    weights: Tensor

    def __init__(
        self,
        network: QuantizedNetwork,
        backbone_checkpoint: FilePath | None = None,
        budgets: list[float] | None = None,
        calibration_batches: int = 4,
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
        network.calibration_batches = calibration_batches
        self.optimizer, self.final_learning_rate = optimizer, final_learning_rate
        self.simple = nn.ModuleList(
            SimplePredictors(len(network.tree.reachable(node))) for node in range(network.tree.num_early)
        )
        self._known = Records(["uncertainty", "features"])
        sizes = {"path": len(TRADEOFFS), "threshold": len(THRESHOLDS), "static": network.num_exits}
        for name, size in sizes.items():
            self.register_buffer(f"{name}_points", torch.zeros(len(network.widths) * size, 4, dtype=torch.float64))
        self.register_buffer("clusters", torch.zeros(network.tree.num_early, dtype=torch.long))
        heads = [(network.tree.exit(node), network.tree.nodes[node][-1]) for node in range(network.tree.num_early)]
        self.register_buffer("weights", torch.tensor([1 / heads.count(head) for head in heads]), persistent=False)

    def setup(self, stage: str) -> None:
        """As every routine; budgets that even the cheapest path breaks are warned of."""
        super().setup(stage)
        for name, why in self.unmet.items():
            warnings.warn(f"model.budgets: {name} {why}", stacklevel=2)

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
            cheapest = min(point.cost for point in self.curves()["quee"])
        why = f"cannot be met: the cheapest path costs {cheapest:.4f} of the float network's BitOPs"
        return {f"budget-{budget:g}": why for budget in self.budgets if budget < cheapest}

    def policies(self) -> dict[str, Policy]:
        """For each budget the first width and lambda that are most accurate on the validation split.

        Before the predictors are fitted, and for a budget that cannot be met, the widest and lambda 0.
        """
        curve, unmet, found = self.curves()["quee"], self.unmet, dict[str, Policy]()
        for budget in self.budgets:
            name, setting = f"budget-{budget:g}", (self.network.widths[0], 0.0)
            if self.fitted and name not in unmet:
                point = point_for_budget(curve, budget, "model.budgets")
                setting = point.width, point.knob
            found[name] = self.network.policy(*setting)
        return found

    def own_points(self) -> dict[str, OperatingPoint]:
        """As every routine's; before the predictors are fitted nothing has chosen them."""
        return super().own_points() if self.fitted else {name: OperatingPoint(p) for name, p in self.policies().items()}

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
        """The curves on validation samples: QuEE's, early exits by confidence (all widths; widest) and static ones."""
        rows = {name: getattr(self, f"{name}_points").tolist() for name in ("path", "threshold", "static")}
        points = {name: [Point(int(width), *rest) for width, *rest in found] for name, found in rows.items()}
        return self._named(points["path"], points["threshold"], points["static"])

    def _named(self, paths: list[Point], thresholds: list[Point], static: list[Point]) -> dict[str, list[Point]]:
        """Curves by the name that results give them; early exit alone is the thresholds' at the widest width."""
        widest = [point for point in thresholds if point.width == self.network.widths[0]]
        return {"quee": paths, "early_exit": widest, "quantized_early_exit": thresholds, "static": static}

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
            uncertainty=torch.stack([rows.statistics for rows in known], dim=1),
            features=torch.cat([rows.features for rows in known], dim=1),
        )
        outputs = ExitOutputs(logits, logits.new_empty(len(logits), 0))  # predicted once, from the records
        self.record(outputs, labels)
        return outputs

    def nodes(self, records: dict[str, Tensor]) -> Nodes:
        """The samples that were judged last, usable for training."""
        if self._known.filled:
            with torch.inference_mode(False):
                found = {name: rows.clone() for name, rows in self._known.compute().items()}
                statistics = records["statistics"].clone()
            self._known.reset()
            tree, dims = self.network.tree, self.network.backbone.feature_dims
            stages = [self.network.exit_stages[tree.exit(node)] for node in range(tree.num_early)]
            features = found["features"].split([dims[stage] for stage in stages], dim=1)
            known = [Known(found["uncertainty"][:, node], rows) for node, rows in enumerate(features)]
            self._nodes = Nodes(statistics[..., 1], statistics[..., 0], known)
        return self._nodes

    def watched(self, rows: Results, records: dict[str, Tensor]) -> dict[str, Any]:
        """Before the predictors are fitted, the mean accuracy of all nodes."""
        if self.fitted and self.too_early is None:
            return super().watched(rows, records)
        return {"accuracy": records["statistics"][..., 1].mean().item()}

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Add the predicted errors of all samples."""
        records["scores"] = self.predicted(self.nodes(records))

    def choose_points(self, records: dict[str, Tensor]) -> None:
        """Fit the predictors on a whole validation of the final weights."""
        if self.trial() is None and not (self.fitted and self.current):
            with torch.inference_mode(False):
                nodes = self.nodes(records)
                self.fit_predictors(nodes)
                records["scores"] = self.predicted(nodes)

    def fit_predictors(self, nodes: Nodes) -> None:
        """Fit the predictors on one half of the validation samples, and take the curves of the other half.

        Raises:
            UserError: Too few samples.
        """
        total = len(nodes.correct)
        if total < LEAST_HELD_OUT:
            remedy = f"gives {total} samples and predictors need {LEAST_HELD_OUT}; hold out more of the training split"
            raise UserError("data.validation_fraction", total, remedy)
        first, second = (nodes.take(rows.to(nodes.correct.device)) for rows in split_rows(total))
        for node, predictor in enumerate(self.network.predictors):
            reachable = self.network.tree.reachable(node)
            errors = 1 - first.correct[:, reachable], 1 - second.correct[:, reachable]
            known = first.known[node], second.known[node]
            self.clusters[node] = fit_predictor(predictor, known, errors).clusters  # type: ignore[arg-type]
            self.simple[node].fit(first.known[node], errors[0])  # type: ignore[operator]
        for name, points in zip(("path", "threshold", "static"), self._curves(second), strict=True):
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

    def held_out(self, samples: int) -> Tensor:
        """The half that taught no predictor."""
        return split_rows(samples)[1]

    @torch.no_grad()
    def predicted(self, nodes: Nodes) -> Tensor:
        """The errors that the gate predicts, `(samples, early nodes, nodes)`."""
        return self.gate(nodes.known)

    def _curves(self, nodes: Nodes) -> tuple[list[Point], list[Point], list[Point]]:
        network, tree = self.network, self.network.tree
        uniform = {width: network.along((width,) * tree.segments).costs.fractions("bitops") for width in tree.widths}
        return (
            path_curve(network.policy(network.widths[0], 0.0), self.predicted(nodes), nodes.correct),
            threshold_curve(tree, uniform, nodes.confidence, nodes.correct),
            static_curve(tree, network.costs, nodes.correct),
        )

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
        curves, errors = self._named(*self._curves(nodes)), 1 - nodes.correct
        simple: list[SimplePredictors] = list(self.simple)  # type: ignore[arg-type]
        others = other_predictions(tree, simple, nodes.known, errors)
        policy = network.policy(network.widths[0], 0.0)
        return found | {
            "curves": {name: curve_rows(points) for name, points in curves.items()},
            "curves_of_other_predictors": {
                name: curve_rows(path_curve(policy, scores, nodes.correct)) for name, scores in others.items()
            },
            "at_budgets": [halves_at_budget(budget, self.curves(), curves) for budget in self.budgets],
            "predictors": {
                "clusters": self.clusters.tolist(),
                **judge_predictors(self.gate, simple, nodes.known, errors),
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
        """As every routine; predictors of checkpoints that were written before they were a gate get their names."""
        state, old, new = checkpoint["state_dict"], "network.predictors.", "network.gate.predictors."
        checkpoint["state_dict"] = {name.replace(old, new): value for name, value in state.items()}
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> Any:
        """The inference modules' optimizer under a cosine schedule."""
        optimizer = self.optimizer(self.network.inference_modules.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.cosine(optimizer, self.final_learning_rate)}


def split_rows(samples: int) -> tuple[Tensor, Tensor]:
    """Of so many validation samples the half that teaches the predictors, and the half that chooses points."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    return order[: samples // 2], order[samples // 2 :]
