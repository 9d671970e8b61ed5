"""Samples at every node of a network of paths: the predictors that are fitted to them, and the curves they give."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from eenet.calibration.curves import Point, path_curve, static_curve, threshold_curve
from eenet.calibration.temperature import fit_temperatures
from eenet.gates import ErrorPredictor, Known
from eenet.quantization.network import QuantizedNetwork
from eenet.quantization.predictors import Targets, fit_predictor
from eenet.tree import Tree


class Nodes(NamedTuple):
    """Samples at every node.

    Attributes:
        correct: 1 where a node is right, `(samples, nodes)`.
        confidence: Maximum probability at each node, `(samples, nodes)`.
        known: What the predictor of each early node reads.
        log_p: Log-probabilities, `(samples, nodes, classes)`.
        labels: `(samples,)`.
    """

    correct: Tensor
    confidence: Tensor
    known: list[Known]
    log_p: Tensor
    labels: Tensor

    def tempered(self, temperatures: Tensor) -> Tensor:
        """Tempered log-probabilities, `(samples, nodes, classes)`."""
        return (self.log_p / temperatures.to(self.log_p).unsqueeze(1)).log_softmax(-1)


class FittedPredictors(NamedTuple):
    """What fitting all predictors of a network gave.

    Attributes:
        unseen: Predicted errors, each sample's by models that did not learn from it, `(samples, early nodes, nodes)`.
        temperatures: Of each node, `(nodes,)`.
        clusters: Of the targets of each early node, 0 where there are none.
        steps: Of training, of each early node.
    """

    unseen: Tensor
    temperatures: Tensor
    clusters: list[int]
    steps: list[int]


def fit_predictors(network: QuantizedNetwork, nodes: Nodes, targets: Targets) -> FittedPredictors:
    """Fit the network's predictors, in place.

    Args:
        network: The network.
        nodes: Samples of the validation split.
        targets: What is learned.
    """
    tree = network.tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # doubtful temperatures are told of by `eenet calibrate`
        temperatures = fit_temperatures(nodes.log_p, nodes.labels).values
    labels = nodes.labels.view(-1, 1, 1).expand(-1, len(tree.nodes), 1)
    soft, errors = 1 - nodes.tempered(temperatures).gather(2, labels).squeeze(2).exp(), 1 - nodes.correct
    unseen = errors.new_full((len(errors), tree.num_early, len(tree.nodes)), float("inf"))
    clusters, steps = list[int](), list[int]()
    for node, predictor in enumerate(network.predictors):
        assert isinstance(predictor, ErrorPredictor)
        reachable = tree.reachable(node)
        found = fit_predictor(predictor, nodes.known[node], errors[:, reachable], soft[:, reachable], targets)
        unseen[:, node, reachable] = found.unseen
        clusters.append(found.clusters)
        steps.append(found.steps)
    return FittedPredictors(unseen, temperatures, clusters, steps)


def curves_of(network: QuantizedNetwork, nodes: Nodes, scores: Tensor) -> tuple[list[Point], list[Point], list[Point]]:
    """The curves of the predictors, of thresholds along every path, and of static networks.

    Args:
        network: The network.
        nodes: Samples.
        scores: Their predicted errors, `(samples, early nodes, nodes)`.
    """
    tree = network.tree
    costs = [network.along(path).costs.fractions("bitops") for path in tree.full]
    return (
        path_curve(network.policy(network.widths[0], 0.0), scores, nodes.correct),
        threshold_curve(tree, costs, nodes.confidence, nodes.correct),
        static_curve(tree, costs, nodes.correct),
    )


def named_curves(
    tree: Tree, paths: Sequence[Point], thresholds: Sequence[Point], static: Sequence[Point]
) -> dict[str, list[Point]]:
    """Curves by name: QuEE's, thresholds along each path, those of one width and of the widest, static ones, all.

    Args:
        tree: The paths.
        paths: Of the predictors.
        thresholds: Along every full path.
        static: Cut at every node.
    """
    uniform = [point for point in thresholds if len(set(tree.full[point.path])) == 1]
    return {
        "quee": list(paths),
        "thresholds": list(thresholds),
        "early_exit": [point for point in uniform if point.width == tree.widths[0]],
        "quantized_early_exit": uniform,
        "static": list(static),
        "union": [*static, *thresholds, *paths],
    }
