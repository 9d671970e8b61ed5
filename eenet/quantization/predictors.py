"""Error predictors: how likely a sample's reachable paths are to be wrong, from what is known at a decision point.

Every sample of the validation split is predicted by a model that did not learn from it (cross-fitting), and one model
that learned from all is kept. What is learned is ours [inferred]; error rates in clusters of similar samples are in the
sense of QuEE (arXiv 2406.14404).
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.gates import ErrorPredictor, Known

Targets = Literal["mixed", "kmeans"]
"""What predictors learn: half of each 0/1 error and half of one minus the tempered probability of the true class; or
error rates in k-means clusters."""

FOLDS = 5

CLUSTERS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of clusters that are tried."""

STEPS, LEARNING_RATE, WEIGHT_DECAY = 200, 0.01, 0.1
CHECK_EVERY = 10
"""Steps between two looks at the samples of the other folds."""


def brier(predicted: Tensor, errors: Tensor) -> float:
    """Mean squared distance of predicted probabilities from what happened, 0 or 1."""
    return (predicted.double() - errors.double()).square().mean().item()


def deal_folds(samples: int, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """The fold of each sample, `(samples,)`: sizes differ by one at most.

    Example:
        >>> deal_folds(12).bincount().tolist()
        [3, 3, 2, 2, 2]
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return order.argsort() % folds


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


def description(known: Known, components: int = 16) -> Tensor:
    """What is clustered: standardised statistics and principal components, both with the same total variance.

    Args:
        known: Samples at a decision point.
        components: Of the features.

    Returns:
        Float64 `(samples, 4 + components)`, on the CPU.
    """
    from sklearn.decomposition import PCA  # takes a second to import

    statistics = known.statistics.double().cpu()
    statistics = (statistics - statistics.mean(0)) / statistics.std(0, correction=0).clamp_min(1e-6)
    features = known.features.double().cpu().numpy()
    pca = PCA(min(components, *features.shape), svd_solver="full").fit(features)
    scale = math.sqrt(max(pca.explained_variance_.sum(), 1e-12) / 4)
    return torch.cat([statistics, torch.from_numpy(pca.transform(features) / scale)], dim=1)


class ClusterTargets(NamedTuple):
    """k-means targets.

    Attributes:
        rates: For each fold those that its model learns, and those of all samples last, `(folds + 1, samples, paths)`.
        clusters: Their number.
    """

    rates: Tensor
    clusters: int


def cluster_targets(
    described: Tensor, errors: Tensor, folds: Tensor, candidates: Sequence[int] = CLUSTERS, seed: int = 0
) -> ClusterTargets:
    """Error rates in clusters; their number is the one whose rates predict the errors of the other folds best.

    Args:
        described: From `description`.
        errors: 1 where a path is wrong, `(samples, paths)`.
        folds: Of each sample.
        candidates: Numbers of clusters; those that leave fewer than 4 samples to a cluster are not tried, 1 always is.
        seed: Of k-means.
    """
    from sklearn.cluster import KMeans

    def rates(clusters: int, learn: Tensor) -> Tensor:
        """Of all samples, by the clusters of some."""
        means = KMeans(clusters, n_init=2, random_state=seed).fit(described[learn].numpy())
        members = torch.from_numpy(means.labels_).long()
        used = members.unique()  # fewer where there are fewer distinct points
        found = cluster_rates(torch.searchsorted(used, members), errors[learn].cpu(), len(used))
        return found[torch.searchsorted(used, torch.from_numpy(means.predict(described.numpy())).long())]

    folds, count = folds.cpu(), int(folds.max()) + 1
    everyone = torch.ones_like(folds, dtype=torch.bool)
    best: tuple[float, int, list[Tensor]] | None = None
    for clusters in (1, *(number for number in sorted(candidates) if 1 < number <= len(folds) // 5)):
        if len(described.unique(dim=0)) < clusters:
            break
        found = [rates(clusters, folds != fold) for fold in range(count)]
        unseen = torch.stack(found)[folds, torch.arange(len(folds))]
        score = brier(unseen, errors.cpu())
        if best is None or score < best[0]:
            best = score, clusters, found
    assert best is not None
    _, clusters, found = best
    return ClusterTargets(torch.stack([*found, rates(clusters, everyone)]).to(errors), clusters)


class Fitted(NamedTuple):
    """What fitting a predictor gave.

    Attributes:
        unseen: Predicted probabilities of an error, each sample's by a model that did not learn from it,
            `(samples, options)`.
        steps: Of training, after which those had the best Brier score.
        clusters: Of k-means targets, else 0.
    """

    unseen: Tensor
    steps: int
    clusters: int


def fit_predictor(
    predictor: ErrorPredictor, known: Known, errors: Tensor, soft: Tensor, targets: Targets = "mixed", seed: int = 0
) -> Fitted:
    """Train a predictor on all samples, for as many steps as serve those best that a model has not seen.

    The models of the folds and the one that is kept are trained side by side, from the same weights.

    Args:
        predictor: Trained in place, whatever it held before.
        known: Samples that the inference modules were not fitted on.
        errors: 1 where a path is wrong, `(samples, options)`.
        soft: One minus the tempered probability of the true class, `(samples, options)`.
        targets: What is learned.
        seed: Of folds, k-means and the first weights.
    """
    folds = deal_folds(len(errors), seed=seed).to(errors.device)
    count, clusters = int(folds.max()) + 1, 0
    predictor.fit_description(known)
    with torch.no_grad():
        rows = predictor.describe(known)
    wanted = ((errors + soft) / 2).expand(count + 1, -1, -1)
    if targets == "kmeans":
        wanted, clusters = cluster_targets(description(known), errors, folds, seed=seed)
    learns = torch.stack([*((folds != fold) for fold in range(count)), torch.ones_like(folds, dtype=torch.bool)])
    weights = (learns / learns.sum(1, keepdim=True)).unsqueeze(2).to(rows)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for layer in predictor.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        models = Stacked(predictor.layers, count + 1)
        optimizer = torch.optim.AdamW(models.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best, kept, steps, unseen = math.inf, models.state_dict(), 0, torch.empty(0)
        for step in range(STEPS + 1):
            logits = models(rows)
            if step % CHECK_EVERY == 0:
                found = logits.detach()[folds, torch.arange(len(folds), device=folds.device)].sigmoid()
                score = brier(found, errors)
                if score < best:
                    best, kept, steps, unseen = score, copy.deepcopy(models.state_dict()), step, found
            optimizer.zero_grad()
            losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(2, keepdim=True)
            (losses * weights).sum().backward()
            optimizer.step()
    models.load_state_dict(kept)
    models.unstack(predictor.layers, count)
    return Fitted(unseen, steps, clusters)


class Stacked(nn.Module):
    """Several copies of a perceptron, computed at once.

    Args:
        layers: The perceptron.
        copies: Their number.
    """

    def __init__(self, layers: nn.Sequential, copies: int) -> None:
        super().__init__()
        self.kinds: list[Any] = [None if isinstance(layer, nn.Linear) else layer for layer in layers]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.weights = nn.ParameterList(layer.weight.detach().T.expand(copies, -1, -1).clone() for layer in linear)
        self.biases = nn.ParameterList(layer.bias.detach().expand(copies, 1, -1).clone() for layer in linear)

    def forward(self, rows: Tensor) -> Tensor:
        """`(samples, inputs)` to `(copies, samples, outputs)`."""
        values, number = rows.expand(len(self.weights[0]), -1, -1), 0
        for kind in self.kinds:
            if kind is None:
                values = torch.baddbmm(self.biases[number], values, self.weights[number])
                number += 1
            else:
                values = kind(values)
        return values

    @torch.no_grad()
    def unstack(self, layers: nn.Sequential, copy: int) -> None:
        """Put the weights of one copy into a perceptron."""
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for layer, weight, bias in zip(linear, self.weights, self.biases, strict=True):
            layer.weight.copy_(cast(Tensor, weight)[copy].T)
            layer.bias.copy_(cast(Tensor, bias)[copy, 0])
