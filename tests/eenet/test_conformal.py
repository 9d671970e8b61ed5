"""Quantiles against numpy, coverage against its exact law over random splits of a pool."""

from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.stats import betabinom, binom

from eenet.calibration import (
    ConformalMode,
    QuantileRule,
    conformal_quantile,
    conformal_quantiles,
    coverage,
    prediction_sets,
    set_size,
    summarise_coverage,
    true_class_scores,
)
from eenet.calibration.conformal import coverage_rows
from eenet.errors import UnmetError, UserError

EXITS, CLASSES, RESPLITS = 3, 6, 100


class Pool(NamedTuple):
    probabilities: torch.Tensor
    labels: torch.Tensor
    exits: torch.Tensor


def make_pool(samples: int) -> Pool:
    """Exits that know more the later they are, left at a confidence of 0.7."""
    labels = torch.randint(CLASSES, (samples,))
    difficulty = 0.5 + 2 * torch.rand(samples, 1, 1, dtype=torch.float64)
    signal = torch.nn.functional.one_hot(labels, CLASSES)[:, None] * torch.tensor([2.0, 3.0, 4.0]).view(EXITS, 1)
    probabilities = (signal + difficulty * torch.randn(samples, EXITS, CLASSES, dtype=torch.float64)).softmax(-1)
    leave = probabilities.amax(-1) >= 0.7
    leave[:, -1] = True
    return Pool(probabilities, labels, leave.int().argmax(1))


def covered(
    pool: Pool,
    calibration: torch.Tensor,
    test: torch.Tensor,
    alpha: float,
    mode: ConformalMode,
    rule: QuantileRule = "jei_dnn",
) -> np.ndarray:
    """Whether each test sample's set holds its class, all exits calibrated on the other samples."""
    scores = true_class_scores(pool.probabilities[calibration], pool.labels[calibration])
    labels = pool.labels[calibration]
    quantiles = conformal_quantiles(scores, pool.exits[calibration], alpha, mode, rule, labels, CLASSES).values
    exits = pool.exits[test]
    sets = prediction_sets(pool.probabilities[test, exits], exits, quantiles)
    return sets[torch.arange(len(test)), pool.labels[test]].numpy()


def in_band(right: int, calibration: int, test: int, alpha: float, above: int = 1) -> bool:
    """Covered test samples are beta-binomial under exchangeability: the finite sizes of both splits are in it."""
    rank = min(int(np.ceil(round((calibration + 1) * (1 - alpha), 6))) + above, calibration)
    low, high = betabinom.ppf([0.025, 0.975], test, rank, calibration + 1 - rank)
    return low <= right <= high


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.sampled_from([0.05, 0.1, 0.3, 0.37, 0.5, 0.9]))
def test_the_quantile_is_numpys(values: list[int], alpha: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    n = len(values)
    level = np.ceil(round((n + 1) * (1 - alpha), 6)) / n
    if level > 1:
        with pytest.raises(UnmetError, match="calibration samples"):
            conformal_quantile(scores, alpha)
        assert conformal_quantile(scores, alpha, "textbook") == 1
    else:
        assert conformal_quantile(scores, alpha).item() == np.quantile(values, level, method="higher")
        textbook = conformal_quantile(scores, alpha, "textbook").item()
        assert textbook == sorted(values)[round(level * n) - 1] == np.quantile(values, level, method="inverted_cdf")


@given(st.integers(1, 120), st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.3, 0.7]))
def test_the_error_names_the_fewest_samples_that_do(samples: int, alpha: float) -> None:
    needed = {0.01: 99, 0.05: 19, 0.1: 9, 0.2: 4, 0.3: 3, 0.7: 1}[alpha]
    if samples >= needed:
        conformal_quantile(torch.rand(samples), alpha)
    else:
        with pytest.raises(UserError, match=f"at least {needed} calibration samples for a quantile, not {samples}"):
            conformal_quantile(torch.rand(samples), alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alphas_outside_the_unit_interval_are_refused(alpha: float) -> None:
    with pytest.raises(UserError, match=r"in \(0, 1\)"):
        conformal_quantile(torch.rand(50), alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_common_covers_the_routed_network(alpha: float) -> None:
    pool, n = make_pool(900), 400
    hits = []
    for _ in range(RESPLITS):
        order = torch.randperm(len(pool.labels))
        hits.append(int(covered(pool, order[:n], order[n:], alpha, "common").sum()))
    inside = sum(in_band(right, n, 500, alpha) for right in hits)
    assert inside >= binom.ppf(0.001, RESPLITS, 0.95)
    law = betabinom(500, np.ceil((n + 1) * (1 - alpha)) + 1, n - np.ceil((n + 1) * (1 - alpha)))
    assert np.mean(hits) == pytest.approx(law.mean(), abs=4 * law.std() / RESPLITS**0.5)


def test_per_exit_covers_the_samples_of_each_exit_and_common_does_not() -> None:
    pool, alpha, n = make_pool(1500), 0.1, 900
    inside: dict[ConformalMode, int] = {"per_exit": 0, "common": 0}
    for _ in range(RESPLITS):
        order = torch.randperm(len(pool.labels))
        calibration, test = order[:n], order[n:]
        for mode in inside:
            hit = covered(pool, calibration, test, alpha, mode)
            for exit in range(EXITS):
                own = (pool.exits[test] == exit).numpy()
                sizes = int((pool.exits[calibration] == exit).sum()), int(own.sum())
                assert min(sizes) > 20
                inside[mode] += in_band(int(hit[own].sum()), *sizes, alpha)
    fewest = binom.ppf(0.001, RESPLITS * EXITS, 0.95)
    assert inside["per_exit"] >= fewest
    assert inside["common"] < fewest


def test_per_exit_all_covers_every_static_exit() -> None:
    pool, alpha, n = make_pool(800), 0.1, 400
    inside = 0
    for _ in range(RESPLITS):
        order = torch.randperm(len(pool.labels))
        scores = true_class_scores(pool.probabilities[order[:n]], pool.labels[order[:n]])
        quantiles = conformal_quantiles(scores, pool.exits[order[:n]], alpha, "per_exit_all").values
        for exit in range(EXITS):
            at = torch.full((400,), exit)
            sets = prediction_sets(pool.probabilities[order[n:], exit], at, quantiles)
            inside += in_band(round(coverage(sets, pool.labels[order[n:]]).item() * 400), n, 400, alpha)
    assert inside >= binom.ppf(0.001, RESPLITS, 0.95) * EXITS


def test_an_exit_with_few_samples_of_its_own_falls_back_to_all() -> None:
    scores = torch.rand(100, 3)
    exits = torch.tensor([0] * 19 + [1] * 20 + [2] * 61)
    quantiles, _, fallbacks = conformal_quantiles(scores, exits, 0.1, "per_exit")
    everyone = conformal_quantiles(scores, exits, 0.1, "per_exit_all").values
    assert fallbacks == [{"exit": 0, "samples": 19, "instead": "all samples"}]
    assert quantiles[0] == everyone[0]
    assert quantiles[1] == scores[19:39, 1].sort().values[19] != everyone[1]
    assert quantiles[2] == scores[39:, 2].sort().values[56] != everyone[2]


def test_a_small_alpha_is_met_where_it_can_be() -> None:
    """An exit with 42 samples, of the 99 that `alpha` 0.01 needs, failed everything."""
    scores, exits = torch.rand(150, 2), torch.tensor([0] * 42 + [1] * 108)
    everyone = conformal_quantiles(scores, exits, 0.01, "per_exit_all")
    assert everyone.fallbacks == conformal_quantiles(scores, exits, 0.01, "common").fallbacks == []
    own = conformal_quantiles(scores, exits, 0.01, "per_exit")
    assert own.fallbacks == [{"exit": 0, "samples": 42, "instead": "all samples"}]
    assert own.values[0] == everyone.values[0]
    assert own.values[1] == scores[42:, 1].max()
    textbook = conformal_quantiles(scores, exits, 0.01, "per_exit", "textbook")
    assert textbook.fallbacks == [{"exit": 0, "samples": 42, "instead": "whole set"}]
    assert textbook.values.tolist() == [1, scores[42:, 1].sort().values[107].item()]
    for mode in ("common", "per_exit", "per_exit_all"):
        with pytest.raises(UnmetError, match="at least 999"):
            conformal_quantiles(scores, exits, 0.001, mode)
        sets = prediction_sets(
            torch.rand(9, 4), torch.tensor([0] * 9), conformal_quantiles(scores, exits, 0.001, mode, "textbook").values
        )
        assert sets.all()


def test_per_class_covers_the_samples_of_each_class_and_common_does_not() -> None:
    """Class 0 is hard: its signal is drowned."""
    pool, alpha, n = make_pool(1500), 0.1, 900
    noise = 3 * torch.randn(pool.probabilities.shape, dtype=torch.float64) * (pool.labels == 0).view(-1, 1, 1)
    pool = pool._replace(probabilities=(pool.probabilities.log() + noise).softmax(-1))
    inside: dict[ConformalMode, int] = {"per_class": 0, "common": 0}
    for _ in range(RESPLITS):
        order = torch.randperm(len(pool.labels))
        calibration, test = order[:n], order[n:]
        for mode in inside:
            hit = covered(pool, calibration, test, alpha, mode, "textbook")
            for label in range(CLASSES):
                own = (pool.labels[test] == label).numpy()
                sizes = int((pool.labels[calibration] == label).sum()), int(own.sum())
                inside[mode] += in_band(int(hit[own].sum()), *sizes, alpha, above=0)
    fewest = binom.ppf(0.001, RESPLITS * CLASSES, 0.95)
    assert inside["per_class"] >= fewest
    assert inside["common"] < fewest


def test_a_class_without_samples_falls_back() -> None:
    scores, exits, labels = torch.rand(60, 2), torch.zeros(60, dtype=torch.long), torch.arange(60) % 2
    paper = conformal_quantiles(scores, exits, 0.1, "per_class", labels=labels, num_classes=3)
    assert paper.fallbacks == [{"class": 2, "samples": 0, "instead": "all samples"}]
    assert paper.values[0, 2] == conformal_quantile(scores[:, 0], 0.1)
    assert paper.values[0, 0] == conformal_quantile(scores[::2, 0], 0.1)
    textbook = conformal_quantiles(scores, exits, 0.1, "per_class", "textbook", labels, 3)
    assert textbook.values[0, 2] == 1


def test_ties_at_the_quantile_are_covered() -> None:
    """Scores of saturated float32 probabilities must be compared as they were computed."""
    probabilities = (30 * torch.randn(200, 1, 4)).softmax(-1)
    labels = probabilities[:, 0].argmax(1)
    scores = true_class_scores(probabilities, labels)
    exits = torch.zeros(200, dtype=torch.long)
    for alpha in (0.05, 0.5, 0.9):
        sets = prediction_sets(probabilities[:, 0], exits, conformal_quantiles(scores, exits, alpha, "common").values)
        assert coverage(sets, labels) >= 1 - alpha


def test_set_statistics_against_loops() -> None:
    pool = make_pool(60)
    exits = torch.where(pool.exits == 1, 2, pool.exits)
    quantiles = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)
    sets = prediction_sets(pool.probabilities[torch.arange(60), exits], exits, quantiles)
    expected = [
        {c for c in range(CLASSES) if 1 - pool.probabilities[i, exits[i], c] <= quantiles[exits[i]]} for i in range(60)
    ]
    hits = [int(pool.labels[i]) in found for i, found in enumerate(expected)]
    covered, sizes = sets.gather(1, pool.labels[:, None])[:, 0], sets.sum(1)
    found = summarise_coverage(covered, sizes, exits, EXITS)
    for label, row in enumerate(coverage_rows(covered, sizes, pool.labels, CLASSES)):
        own = [i for i in range(60) if pool.labels[i] == label]
        assert row["count"] == len(own)
        assert row["coverage"] == pytest.approx(np.mean([hits[i] for i in own]))
    assert found["coverage"] == coverage(sets, pool.labels) == pytest.approx(np.mean(hits))
    assert found["set_size"] == set_size(sets) == pytest.approx(np.mean([len(s) for s in expected]))
    assert found["exits"][1] == {"count": 0, "coverage": None, "set_size": None}
    for exit in (0, 2):
        own = [i for i in range(60) if exits[i] == exit]
        assert found["exits"][exit] == {
            "count": len(own),
            "coverage": pytest.approx(np.mean([hits[i] for i in own])),
            "set_size": pytest.approx(np.mean([len(expected[i]) for i in own])),
        }
