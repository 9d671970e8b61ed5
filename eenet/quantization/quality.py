"""How good the error predictors are: Brier score, AUROC and calibration against two simple predictors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eenet.gates import Known
from eenet.metrics.statistics import auroc, reliability_bins
from eenet.quantization.predictors import brier
from eenet.tree import Tree, path_name


class SimplePredictors(nn.Module):
    """Two predictors that an error predictor has to beat: each path's error rate, and a logistic line per path on the
    exit's maximum probability.

    Args:
        options: Paths whose errors are predicted.
    """

    rates: Tensor
    slopes: Tensor
    intercepts: Tensor

    def __init__(self, options: int) -> None:
        super().__init__()
        for name in ("rates", "slopes", "intercepts"):
            self.register_buffer(name, torch.zeros(options))

    def fit(self, known: Known, errors: Tensor) -> None:
        """Fit both.

        Args:
            known: Samples at a decision point.
            errors: 1 where a path is wrong, `(samples, options)`.
        """
        from sklearn.linear_model import LogisticRegression

        self.rates.copy_(errors.mean(0))
        self.slopes.zero_()
        self.intercepts.copy_(self.rates.clamp(1e-3, 1 - 1e-3).logit())
        scores = known.statistics[:, :1].double().cpu().numpy()
        for option, wrong in enumerate(errors.T):
            if 0 < wrong.sum() < len(wrong):
                line = LogisticRegression().fit(scores, wrong.long().cpu().numpy())
                self.slopes[option], self.intercepts[option] = line.coef_[0, 0], line.intercept_[0]

    def constant(self, known: Known) -> Tensor:
        """Error rates, `(samples, options)`."""
        return self.rates.expand(len(known.statistics), -1)

    def confidence(self, known: Known) -> Tensor:
        """Errors predicted from the maximum probability alone, `(samples, options)`."""
        return (known.statistics[:, :1] * self.slopes + self.intercepts).sigmoid()


@torch.no_grad()
def judge_predictors(
    tree: Tree, scores: Tensor, simple: Sequence[SimplePredictors], known: Sequence[Known], errors: Tensor
) -> dict[str, Any]:
    """Compare the predictors with the simple ones on samples that fitted neither.

    Args:
        tree: The paths.
        scores: Predicted errors, `(samples, early nodes, nodes)`.
        simple: One per early node.
        known: One per early node.
        errors: 1 where a node is wrong, `(samples, nodes)`.

    Returns:
        `nodes`: for each early node its path and a row per reachable path with `error_rate`, `brier`, `brier_constant`,
        `brier_confidence`, `auroc` and `auroc_confidence` (`None` where no sample, or every sample, is wrong); where
        several widths lead on, its `rescue`, see there; `summary`: their means over all rows and nodes;
        `calibration`: bins of all predictions together.
    """
    nodes: list[dict[str, Any]] = []
    everything = []
    for node in range(tree.num_early):
        reachable = tree.reachable(node)
        predicted = scores[:, node, reachable]
        wrong = errors[:, reachable]
        everything.append((predicted.flatten(), wrong.flatten()))
        constant, by_confidence = simple[node].constant(known[node]), simple[node].confidence(known[node])
        rows = []
        for option, end in enumerate(reachable):
            happened = wrong[:, option]
            rows.append(
                {
                    "path": path_name(tree.nodes[end]),
                    "error_rate": happened.double().mean().item(),
                    "brier": brier(predicted[:, option], happened),
                    "brier_constant": brier(constant[:, option], happened),
                    "brier_confidence": brier(by_confidence[:, option], happened),
                    "auroc": auroc(predicted[:, option], happened),
                    "auroc_confidence": auroc(-known[node].statistics[:, 0], happened),
                }
            )
        nodes.append(
            {
                "path": path_name(tree.nodes[node]),
                "reachable": rows,
                "rescue": rescue(tree, node, predicted, wrong),
                "rescue_confidence": rescue(tree, node, by_confidence, wrong),
            }
        )
    rows = [row for found in nodes for row in found["reachable"]]
    bins = reliability_bins(*(torch.cat(values) for values in zip(*everything, strict=True)))
    rescues = [{key: found[key] for key in ("rescue", "rescue_confidence")} for found in nodes]
    return {"nodes": nodes, "summary": _means(rows) | _means(rescues), "calibration": bins}


def rescue(tree: Tree, node: int, predicted: Tensor, errors: Tensor) -> float | None:
    """How well a node foresees whom the widest way on serves right and the narrowest does not: what routing is for.

    Args:
        tree: The paths.
        node: An early one.
        predicted: Errors of the nodes that can be reached from it, `(samples, options)`.
        errors: 1 where they are wrong, `(samples, options)`.

    Returns:
        The AUROC of the difference of both predicted errors; `None` where there is one way on, or nobody is rescued.

    Example:
        >>> tree = Tree.of([(8, 8), (8, 4)])
        >>> errors = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])  # the first sample needs 8 bits
        >>> rescue(tree, 0, torch.tensor([[0.5, 0.1, 0.4], [0.5, 0.1, 0.2]]), errors)
        1.0
    """
    reachable, length = tree.reachable(node), len(tree.nodes[node])
    full = [option for option, end in enumerate(reachable) if len(tree.nodes[end]) == tree.segments]
    wide = max(full, key=lambda option: tree.nodes[reachable[option]][length:])
    narrow = min(full, key=lambda option: tree.nodes[reachable[option]][length:])
    if wide == narrow:
        return None
    saved = (errors[:, narrow] - errors[:, wide]).clamp_min(0)
    return auroc(predicted[:, narrow] - predicted[:, wide], saved)


def clairvoyant(tree: Tree, log_p: Tensor) -> Tensor:
    """How likely each node is to be wrong by what all full paths say together, labels unseen.

    The paths' probabilities are averaged; a node is wrong as often as the average gives other classes than the node's.
    No router sees as much: what it could win is a bound for all.

    Args:
        tree: The paths.
        log_p: Tempered log-probabilities of every node, `(samples, nodes, classes)`.

    Returns:
        `(samples, nodes)`.
    """
    mean = log_p[:, tree.num_early :].exp().mean(1)
    return 1 - mean.gather(1, log_p.argmax(2))


def other_predictions(
    tree: Tree, simple: Sequence[SimplePredictors], known: Sequence[Known], errors: Tensor, log_p: Tensor
) -> dict[str, Tensor]:
    """What the policy could have been given instead of the predictors' errors, to see what their quality is worth.

    Args:
        tree: The paths.
        simple: One per early node.
        known: One per early node.
        errors: 1 where a node is wrong, `(samples, nodes)`.
        log_p: Tempered log-probabilities of every node, `(samples, nodes, classes)`.

    Returns:
        As an `ErrorGate` gives them, `(samples, early nodes, nodes)`: `constant` and `confidence` from the simple
        predictors, `clairvoyant`, and `oracle`, what really happens.
    """
    found, seen = {}, {"oracle": errors, "clairvoyant": clairvoyant(tree, log_p)}
    for name in ("constant", "confidence", "clairvoyant", "oracle"):
        scores = errors.new_full((len(errors), tree.num_early, len(tree.nodes)), float("inf"))
        for node, (model, rows) in enumerate(zip(simple, known, strict=True)):
            reachable = tree.reachable(node)
            scores[:, node, reachable] = seen[name][:, reachable] if name in seen else getattr(model, name)(rows)
        found[name] = scores
    return found


def _means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for key in rows[0]:
        if key != "path":
            values = [row[key] for row in rows if row[key] is not None]
            means[key] = sum(values) / len(values) if values else None
    return means
