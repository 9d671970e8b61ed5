import pytest
import torch
from scipy import stats

from eenet.decoding.intervals import oracle_interval, score_intervals


def test_intervals_are_the_normal_ones_where_there_are_many_prompts() -> None:
    scores = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.5])
    first, full = score_intervals(scores, seed=0)
    for name, values in (("score", scores[:, 0]), ("gain", scores[:, 0] - scores[:, 1])):
        low, high = stats.norm.interval(0.95, values.mean().item(), values.std().item() / len(values) ** 0.5)
        assert first[f"{name}_low"] == pytest.approx(low, abs=4e-3)
        assert first[f"{name}_high"] == pytest.approx(high, abs=4e-3)
    assert first["gain"] == pytest.approx((scores[:, 0].mean() - scores[:, 1].mean()).item(), abs=1e-6)
    assert full["gain_low"] == full["gain"] == full["gain_high"] == 0


def test_one_prompt_has_no_spread() -> None:
    found = score_intervals(torch.tensor([[0.25, 0.75]]), seed=0)[0]
    assert (found["score_low"], found["score_high"], found["gain_low"]) == (0.25, 0.25, -0.5)


def test_the_oracles_interval_holds_the_layers_of_like_samples() -> None:
    """Half of the prompts need both layers, so that a sample of 100 needs 1.5 of them on average, by a binomial."""
    scores = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).repeat(50, 1)
    found = oracle_interval(scores, [1, 2], seed=0)
    low, high = stats.binom.interval(0.95, 100, 0.5)
    assert found["layers_low"] == pytest.approx(1 + low / 100, abs=0.02)
    assert found["layers_high"] == pytest.approx(1 + high / 100, abs=0.02)
