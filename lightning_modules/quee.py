"""QuEE: bit-widths and exits chosen per sample by predicted error and BitOPs (Regol et al., arXiv 2406.14404)."""

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from eenet.calibration import ChosenOn, OperatingPoint
from eenet.errors import UserError
from eenet.features import Features
from eenet.files import FilePath
from eenet.metrics import Records, sample_statistics
from eenet.objectives import ClassWeights, weighted_sum_loss
from eenet.policies import Policy
from eenet.quantization import (
    Known,
    PathPolicy,
    Point,
    QuantizedNetwork,
    SimplePredictors,
    final_nodes,
    fit_predictor,
    judge_predictors,
    other_predictions,
    path_curve,
    point_for_budget,
    predicted_errors,
    route_paths,
    static_curve,
    threshold_curve,
)
from eenet.quantization.curves import THRESHOLDS, TRADEOFFS
from eenet.quantization.figures import accuracy_bitops_figure, path_histogram_figure, predictor_figure
from eenet.quantization.results import curve_rows, halves_at_budget, path_row, uniform_rows
from eenet.reporting import gather_exits
from lightning_modules.choosing import chosen
from lightning_modules.heading import heading
from lightning_modules.predictions import predicted
from lightning_modules.reports import FIGURES
from lightning_modules.routine import ExitRoutine

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
        statistics: From `eenet.metrics.sample_statistics`, `(samples, nodes, 6)`.
        known: What the predictor of each early node reads.
    """

    statistics: Tensor
    known: list[Known]

    @property
    def errors(self) -> Tensor:
        """1 where a node is wrong, `(samples, nodes)`."""
        return 1 - self.statistics[..., 1]

    def take(self, rows: Tensor) -> "Nodes":
        """Some of the samples."""
        return Nodes(self.statistics[rows], [Known(*(values[rows] for values in known)) for known in self.known])


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
    figures = {**FIGURES, **PATH_FIGURES}
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
        self.calibration_batches = calibration_batches
        self.optimizer, self.final_learning_rate = optimizer, final_learning_rate
        self.simple = nn.ModuleList(
            SimplePredictors(len(network.tree.reachable(node))) for node in range(network.tree.num_early)
        )
        self._nodes = Records(["statistics", "uncertainty", "features"])
        sizes = {"path": len(TRADEOFFS), "threshold": len(THRESHOLDS), "static": network.num_exits}
        for name, size in sizes.items():
            self.register_buffer(f"{name}_points", torch.zeros(len(network.widths) * size, 4, dtype=torch.float64))
        self._paths: dict[str, OperatingPoint] = {}
        self.register_buffer("clusters", torch.zeros(network.tree.num_early, dtype=torch.long))
        heads = [(network.tree.exit(node), network.tree.nodes[node][-1]) for node in range(network.tree.num_early)]
        self.register_buffer("weights", torch.tensor([1 / heads.count(head) for head in heads]), persistent=False)

    def setup(self, stage: str) -> None:
        """As every routine; budgets that even the cheapest path breaks are warned of."""
        super().setup(stage)
        for name, why in self.unmet.items():
            warnings.warn(f"model.budgets: {name} {why}", stacklevel=2)

    @property
    def unmet(self) -> dict[str, str]:
        """Why budgets cannot be met, by the names of their points."""
        cheapest = self.network.node_costs.min().item()
        if self.fitted:
            cheapest = min(point.cost for point in self.curves()["quee"])
        why = f"cannot be met: the cheapest path costs {cheapest:.4f} of the float network's BitOPs"
        return {f"budget-{budget:g}": why for budget in self.budgets if budget < cheapest}

    def policies(self) -> dict[str, Policy]:
        """None that looks at exits alone; see `own_points`."""
        return {}

    def own_points(self) -> dict[str, OperatingPoint]:
        """For each budget the first width and lambda that are most accurate on the validation split.

        Before the predictors are fitted, and for a budget that cannot be met, points that nothing has chosen.
        """
        found = {}
        for budget in self.budgets:
            name, policy, chosen_on = f"budget-{budget:g}", PathPolicy(self.network.widths[0], 0.0), None
            if self.fitted and name not in self.unmet:
                point = point_for_budget(self.curves()["quee"], budget, "model.budgets")
                policy, chosen_on = PathPolicy(point.width, point.knob), self.validated_on
            found[name] = OperatingPoint(cast(Policy, policy), chosen_on=chosen_on)
        return found

    @property
    def wish(self) -> str:
        """The budgets."""
        return f"--budget-bitops {','.join(f'{budget:g}' for budget in self.budgets)}"

    @property
    def fitted(self) -> bool:
        """Whether the predictors have been fitted."""
        return bool(self.path_points[:, 0].any())

    def curves(self) -> dict[str, list[Point]]:
        """The curves on validation samples: QuEE's, early exits by confidence (all widths; widest) and static ones."""
        rows = {name: getattr(self, f"{name}_points").tolist() for name in ("path", "threshold", "static")}
        points = {name: [Point(int(width), *rest) for width, *rest in found] for name, found in rows.items()}
        return name_curves(self.network, points["path"], points["threshold"], points["static"])

    def choose_ranges(self) -> None:
        """Before a new training, take the ranges of the activations from training inputs and choose among them."""
        self.take_ranges(self.network, self.calibration_batches)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum over inference modules of the cross-entropy, each on the features of all paths that lead to it."""
        inputs, labels = batch
        logits = self.network.exit_logits(self.extract(inputs))
        trained = logits[:, : self.network.tree.num_early]
        loss = weighted_sum_loss(trained, labels, self.weights, self.class_weight)
        self.log_losses("inference_modules", batch_idx, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Record every node."""
        self.record_nodes(*batch)

    def record_nodes(self, inputs: Any, labels: Tensor) -> None:
        """Add the statistics of every node and what its predictor reads to the records."""
        extracted = self.extract(inputs)
        logits = self.network.exit_logits(extracted)
        uncertainty, features = zip(*self.network.known(extracted, logits), strict=True)
        self._nodes.update(
            statistics=sample_statistics(logits, labels),
            uncertainty=torch.stack(uncertainty, dim=1),
            features=torch.cat(features, dim=1),
        )

    def finish_nodes(self) -> Nodes:
        """The records of all samples, usable for training, and new records."""
        with torch.inference_mode(False):
            found = {name: rows.clone() for name, rows in self._nodes.compute().items()}
        self._nodes.reset()
        dims = [
            self.network.backbone.feature_dims[self.network.last_stage(node)]
            for node in range(self.network.tree.num_early)
        ]
        features = found["features"].split(dims, dim=1)
        known = [Known(found["uncertainty"][:, node], rows) for node, rows in enumerate(features)]
        return Nodes(found["statistics"], known)

    def on_validation_epoch_end(self) -> None:
        """Judge static networks; fit the predictors on a whole validation of the final weights, and judge them.

        A training's validations before its last epoch fit nothing.
        """
        with torch.inference_mode(False):
            nodes, trial, fn = self.finish_nodes(), self.trial(), self.trainer.state.fn
            ends = fn != "fit" or self.current_epoch + 1 == self.trainer.max_epochs
            if trial is None and ends and not self.current:
                self.fit_predictors(nodes)
                self.remember(len(nodes.statistics))
            if self.fitted and self.current and not self.trainer.sanity_checking:
                self._judge("val", nodes, self.mark(self._reference_rows(nodes), trial))
                return
            rows = {width: uniform_rows(self.network, nodes.statistics, width) for width in self.network.widths}
        for width, exits in rows.items():
            values = {f"val/accuracy/{width}_bits/{row['name'].replace(' ', '_')}": row["accuracy"] for row in exits}
            self.log_dict(values, rank_zero_only=True)
        self.log("val/accuracy", nodes.statistics[..., 1].mean(), prog_bar=True, rank_zero_only=True)

    def fit_predictors(self, nodes: Nodes) -> None:
        """Fit the predictors on one half of the validation samples, and take the curves of the other half.

        Raises:
            UserError: Too few samples.
        """
        total = len(nodes.statistics)
        if total < LEAST_HELD_OUT:
            remedy = f"gives {total} samples and predictors need {LEAST_HELD_OUT}; hold out more of the training split"
            raise UserError("data.validation_fraction", total, remedy)
        first, second = halves(nodes)
        for node, predictor in enumerate(self.network.predictors):
            reachable = self.network.tree.reachable(node)
            errors = first.errors[:, reachable], second.errors[:, reachable]
            known = first.known[node], second.known[node]
            self.clusters[node] = fit_predictor(predictor, known, errors).clusters  # type: ignore[arg-type]
            self.simple[node].fit(first.known[node], errors[0])  # type: ignore[operator]
        for name, points in zip(("path", "threshold", "static"), self._curves(second), strict=True):
            getattr(self, f"{name}_points").copy_(torch.tensor(points, dtype=torch.float64))

    def fit_on(self, batches: Iterable[Any], split: str | None) -> None:
        """Fit the predictors outside a training, on all batches of the validation split.

        Args:
            batches: `(inputs, labels)` on the routine's device.
            split: Fingerprint of the split.

        Raises:
            UserError: Too few samples.
        """
        with torch.no_grad():
            for inputs, labels in batches:
                self.record_nodes(inputs, labels)
        nodes = self.finish_nodes()
        self.fit_predictors(nodes)
        self.validated_on = ChosenOn(self.network_digest(), split, len(nodes.statistics))

    def _curves(self, nodes: Nodes) -> tuple[list[Point], list[Point], list[Point]]:
        network, correct = self.network, 1 - nodes.errors
        predicted = predicted_errors(network, nodes.known)
        confidence = nodes.statistics[..., 0]
        return (
            path_curve(network, predicted, correct),
            threshold_curve(network, confidence, correct),
            static_curve(network, correct),
        )

    def _reference_rows(self, nodes: Nodes) -> list[dict[str, Any]]:
        predicted, rows = predicted_errors(self.network, nodes.known), []
        for name, point in self.own_points().items():
            policy = cast(PathPolicy, point.policy)
            ends = final_nodes(self.network, predicted, policy)
            rows.append(path_row(self.network, name, gather_exits(nodes.statistics, ends), ends, policy))
        return rows

    def _judge(self, split: str, nodes: Nodes, rows: list[dict[str, Any]]) -> None:
        network, curves = self.network, name_curves(self.network, *self._curves(nodes))
        static = {width: uniform_rows(network, nodes.statistics, width) for width in network.widths}
        simple: list[SimplePredictors] = list(self.simple)  # type: ignore[arg-type]
        quality = judge_predictors(network, simple, nodes.known, nodes.errors)
        others = other_predictions(network, simple, nodes.known, nodes.errors)
        self.results = {
            **heading(self, split),
            "operating_points": rows,
            "exits": static[network.widths[0]],
            "static_widths": {str(width): found for width, found in static.items()},
            "curves": {name: curve_rows(points) for name, points in curves.items()},
            "curves_of_other_predictors": {
                name: curve_rows(path_curve(network, predicted, 1 - nodes.errors)) for name, predicted in others.items()
            },
            "at_budgets": [halves_at_budget(budget, self.curves(), curves) for budget in self.budgets],
            "predictors": {"clusters": self.clusters.tolist(), **quality},
            "quantization": network.describe_quantization(),
        }
        self._log_results(split)
        if self.trainer.state.fn != "fit":
            self._print_results()

    def on_test_start(self) -> None:
        """Make room for the records of each operating point.

        Raises:
            UserError: They were chosen on other weights, on another split, or never: there are no predictors then.
        """
        self.require_principal()
        self._paths = self.usable_points()
        self._routed = nn.ModuleDict({str(i): Records(["statistics", "nodes"]) for i in range(len(self._paths))})
        self._routed.to(self.device)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Record every node, and really route the batch at every operating point."""
        inputs, labels = batch
        self.record_nodes(inputs, labels)
        for records, point in zip(self._routed.values(), self._paths.values(), strict=True):
            routed = route_paths(self.network, inputs, cast(PathPolicy, point.policy))
            records.update(statistics=sample_statistics(routed.logits, labels), nodes=routed.nodes)  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        """Log the results, write `results.json` and the figures, and print the table."""
        rows = []
        for (name, point), records in zip(self._paths.items(), self._routed.values(), strict=True):
            found, policy = records.compute(), cast(PathPolicy, point.policy)  # type: ignore[operator]
            rows.append(chosen(path_row(self.network, name, found["statistics"], found["nodes"], policy), point))
        self._judge("test", self.finish_nodes(), rows)
        self._write_results()

    def on_predict_start(self) -> None:
        """Take the principal operating point.

        Raises:
            UserError: It is not chosen.
        """
        self.require_principal()
        self._paths = self.usable_points()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Route a batch at the first budget: `labels`, `probabilities`, `exits`, `macs` and `bitops` per sample."""
        routed = route_paths(self.network, batch[0], cast(PathPolicy, next(iter(self._paths.values())).policy))
        return {**predicted(routed), "bitops": routed.bitops}

    def configure_optimizers(self) -> Any:
        """The inference modules' optimizer under a cosine schedule."""
        optimizer = self.optimizer(self.network.inference_modules.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.cosine(optimizer, self.final_learning_rate)}


def name_curves(
    network: QuantizedNetwork, paths: list[Point], thresholds: list[Point], static: list[Point]
) -> dict[str, list[Point]]:
    """Curves by the name that results give them; early exit alone is the thresholds' curve at the widest width."""
    widest = [point for point in thresholds if point.width == network.widths[0]]
    return {"quee": paths, "early_exit": widest, "quantized_early_exit": thresholds, "static": static}


def halves(nodes: Nodes) -> tuple[Nodes, Nodes]:
    """The half of the validation samples that teaches the predictors, and the half that chooses operating points."""
    total = len(nodes.statistics)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).to(nodes.statistics.device)
    return nodes.take(order[: total // 2]), nodes.take(order[total // 2 :])
