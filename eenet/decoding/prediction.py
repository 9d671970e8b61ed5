"""How many layers a whole sequence needs, predicted from its prompt without having generated anything."""

import numpy as np
import torch
from torch import Tensor

from eenet.decoding.oracle import judge, traded

FOLDS = 5
PENALTIES = np.logspace(1, 7, 13)
"""Ridge penalties that each fold chooses from by leave-one-out error on its own training prompts."""


def cross_fitted(features: Tensor, targets: Tensor, seed: int = 0) -> Tensor:
    """Predictions of a ridge regression for prompts that it was not fitted on.

    Args:
        features: Of every prompt, `(prompts, dim)`.
        targets: `(prompts, outputs)`.
        seed: Of the division of the prompts into `FOLDS` folds.

    Returns:
        Float64 `(prompts, outputs)`.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    return torch.from_numpy(cross_val_predict(model, features.double().numpy(), targets.double().numpy(), cv=folds))


def predictor_curve(predicted: Tensor, scores: Tensor, costs: Tensor, points: int = 20) -> list[dict[str, float]]:
    """What choosing by predicted score reaches, as cost counts more and more.

    Args:
        predicted: Score of every plan as predicted from the prompt, `(prompts, plans)`.
        scores: True scores, `(prompts, plans)`.
        costs: Layers of each plan, `(plans,)`.
        points: Tradeoffs, spaced evenly on a logarithmic scale around what the whole range of scores is worth.

    Returns:
        Rows of `judge` by increasing mean cost.
    """
    span = float((predicted.max() - predicted.min()).clamp(min=1e-9)) / float(costs.max() - costs.min())
    tradeoffs = [0.0, *(span * np.logspace(-2, 1, points - 1)).tolist()]
    rows = [judge(traded(predicted, costs, tradeoff), scores, costs) for tradeoff in tradeoffs]
    return sorted(rows, key=lambda row: row["cost"])


def rank_correlation(predicted: Tensor, true: Tensor) -> float:
    """Spearman's correlation of two lists, `(prompts,)`, and 0 where one of them is constant.

    Example:
        >>> round(rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 9.0])), 3)
        1.0
    """
    from scipy.stats import spearmanr

    if len(predicted.unique()) < 2 or len(true.unique()) < 2:
        return 0.0
    return float(spearmanr(predicted.numpy(), true.numpy()).statistic)
