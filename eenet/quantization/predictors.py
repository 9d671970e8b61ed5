"""Error predictors: how likely a sample's reachable paths are to be wrong, from what is known at a decision point.

Single errors are 0 or 1, so the predictors learn error rates in clusters of similar samples (QuEE, arXiv 2406.14404).
What is clustered is ours [inferred].
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.gates import ErrorPredictor, Known

CLUSTERS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of clusters that are tried."""

STEPS, LEARNING_RATE, WEIGHT_DECAY = 250, 0.01, 0.01
CHECK_EVERY = 10
"""Steps between two looks at the validation samples."""


def brier(predicted: Tensor, errors: Tensor) -> float:
    """Mean squared distance of predicted probabilities from what happened, 0 or 1."""
    return (predicted.double() - errors.double()).square().mean().item()


def cluster_rates(members: Tensor, errors: Tensor, clusters: int) -> Tensor:
    """Error rate of every path in every cluster.

    Args:
        members: Cluster of each sample, `(samples,)`.
        errors: 1 where a path is wrong, `(samples, paths)`.
        clusters: Their number; each has a member.

    Returns:
        `(clusters, paths)`.

    Example:
        >>> cluster_rates(torch.tensor([0, 0, 1]), torch.tensor([[1.0], [0.0], [1.0]]), 2).tolist()
        [[0.5], [1.0]]
    """
    belongs = F.one_hot(members, clusters).to(errors.dtype)
    return belongs.T @ errors / belongs.sum(0).unsqueeze(1)


class Targets(NamedTuple):
    """What a predictor learns.

    Attributes:
        rates: Error rates in each sample's cluster, `(samples, paths)`.
        clusters: Their number.
        brier: Of the rates on the samples that chose that number.
    """

    rates: Tensor
    clusters: int
    brier: float


def cluster_targets(
    described: tuple[Tensor, Tensor], errors: tuple[Tensor, Tensor], candidates: Sequence[int] = CLUSTERS, seed: int = 0
) -> Targets:
    """k-means targets whose number of clusters predicts the errors of other samples best.

    Args:
        described: Descriptions of the samples to cluster and of those that choose, `(samples, dim)` each.
        errors: Of both, `(samples, paths)`.
        candidates: Numbers of clusters; those that leave fewer than 4 samples to a cluster are not tried, 1 always is.
        seed: Of k-means.
    """
    from sklearn.cluster import KMeans

    points, others = (rows.double().cpu().numpy() for rows in described)
    best = None
    for clusters in (1, *(count for count in sorted(candidates) if 1 < count <= len(points) // 4)):
        means = KMeans(clusters, n_init=2, random_state=seed).fit(points)
        members = torch.from_numpy(means.labels_).long().to(errors[0].device)
        if len(members.unique()) < clusters:
            break  # fewer distinct points than clusters
        rates = cluster_rates(members, errors[0], clusters)
        score = brier(rates[torch.from_numpy(means.predict(others)).long().to(rates.device)], errors[1])
        if best is None or score < best.brier:
            best = Targets(rates[members], clusters, score)
    assert best is not None
    return best


def fit_predictor(
    predictor: ErrorPredictor, known: tuple[Known, Known], errors: tuple[Tensor, Tensor], seed: int = 0
) -> Targets:
    """Train a predictor on k-means targets; keep the weights with the best Brier score on the other samples.

    Args:
        predictor: Trained in place, whatever it held before.
        known: Of the samples to learn from and of those that choose; the inference modules were fitted on neither.
        errors: Of both, `(samples, options)`, 1 where a path is wrong.
        seed: Of k-means and of the first weights.
    """
    predictor.fit_description(known[0])
    with torch.no_grad():
        described = predictor.describe(known[0]), predictor.describe(known[1])
    targets = cluster_targets(described, errors, seed=seed)
    predictor.layers.requires_grad_(True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for layer in predictor.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        optimizer = torch.optim.AdamW(predictor.layers.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best, kept = math.inf, predictor.layers.state_dict()
        for step in range(STEPS + 1):
            if step % CHECK_EVERY == 0:
                score = brier(predictor.layers(described[1]).detach().sigmoid(), errors[1])
                if score < best:
                    best, kept = score, copy.deepcopy(predictor.layers.state_dict())
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(predictor.layers(described[0]), targets.rates).backward()
            optimizer.step()
    predictor.layers.requires_grad_(False)
    predictor.layers.load_state_dict(kept)
    return targets
