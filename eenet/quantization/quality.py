"""How good the error predictors are: Brier score, AUROC and calibration against two simple predictors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eenet.gates import ErrorGate, Known
from eenet.metrics.statistics import reliability_bins
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
    gate: ErrorGate, simple: Sequence[SimplePredictors], known: Sequence[Known], errors: Tensor
) -> dict[str, Any]:
    """Compare the predictors with the simple ones on samples that fitted neither.

    Args:
        gate: The predictors.
        simple: One per early node.
        known: One per early node.
        errors: 1 where a node is wrong, `(samples, nodes)`.

    Returns:
        `nodes`: for each early node its path and a row per reachable path with `error_rate`, `brier`, `brier_constant`,
        `brier_confidence`, `auroc` and `auroc_confidence` (`None` where no sample, or every sample, is wrong);
        `summary`: their means over all rows; `calibration`: bins of all predictions together.
    """
    tree, nodes, everything = gate.tree, [], []
    for node, predictor in enumerate(gate.predictors):
        reachable, scores = tree.reachable(node), predictor(known[node])
        predicted = scores.sigmoid()
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
                    "auroc": auroc(scores[:, option], happened),
                    "auroc_confidence": auroc(-known[node].statistics[:, 0], happened),
                }
            )
        nodes.append({"path": path_name(tree.nodes[node]), "reachable": rows})
    rows = [row for found in nodes for row in found["reachable"]]  # type: ignore[misc]
    bins = reliability_bins(*(torch.cat(values) for values in zip(*everything, strict=True)))
    return {"nodes": nodes, "summary": _means(rows), "calibration": bins}


def other_predictions(
    tree: Tree, simple: Sequence[SimplePredictors], known: Sequence[Known], errors: Tensor
) -> dict[str, Tensor]:
    """What the policy could have been given instead of the predictors' errors, to see what their quality is worth.

    Args:
        tree: The paths.
        simple: One per early node.
        known: One per early node.
        errors: 1 where a node is wrong, `(samples, nodes)`.

    Returns:
        As an `ErrorGate` gives them, `(samples, early nodes, nodes)`: `constant` and `confidence` from the simple
        predictors, and `oracle`, what really happens.
    """
    found = {}
    for name in ("constant", "confidence", "oracle"):
        scores = errors.new_full((len(errors), tree.num_early, len(tree.nodes)), float("inf"))
        for node, (model, rows) in enumerate(zip(simple, known, strict=True)):
            reachable = tree.reachable(node)
            scores[:, node, reachable] = errors[:, reachable] if name == "oracle" else getattr(model, name)(rows)
        found[name] = scores
    return found


def auroc(scores: Tensor, happened: Tensor) -> float | None:
    """Area under the ROC curve, from the order of the scores alone.

    Args:
        scores: Higher where it is likelier to happen, on any scale, `(samples,)`: logits, as a sigmoid in float32 makes
            different scores equal. Of equal ones each pair counts half.
        happened: 0 or 1, `(samples,)`.

    Returns:
        `None` if everything or nothing happened, or a score is NaN, which has no place in an order.

    Example:
        >>> auroc(torch.tensor([0.1, 0.4]), torch.tensor([0.0, 1.0]))
        1.0
    """
    from sklearn.metrics import roc_auc_score

    if scores.isnan().any() or not 0 < happened.sum() < len(happened):
        return None
    places = scores.unique(return_inverse=True)[1]  # infinite scores, which roc_auc_score refuses, have one too
    return float(roc_auc_score(happened.cpu().numpy(), places.cpu().numpy()))


def _means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for key in rows[0]:
        if key != "path":
            values = [row[key] for row in rows if row[key] is not None]
            means[key] = sum(values) / len(values) if values else None
    return means
