import math
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch.nn import functional as F

from eenet.calibration import fit_temperatures, temperature
from eenet.errors import UserError
from eenet.metrics import sample_statistics, summarise


def calibrated(samples: int, exits: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right as they are, at every exit, and labels drawn from the first exit's."""
    logits = 2 * torch.randn(samples, 1, classes, dtype=torch.float64).expand(-1, exits, -1)
    return logits, torch.distributions.Categorical(logits=logits[:, 0]).sample()


@pytest.mark.parametrize("classes", [2, 10])
def test_temperatures_against_scipy(classes: int) -> None:
    logits, labels = calibrated(400, 4, classes)
    logits = logits * torch.tensor([0.05, 0.5, 3.0, 40.0]).view(4, 1) + 0.3 * torch.randn_like(logits)
    found = fit_temperatures(logits, labels).values
    for exit in range(4):
        z = logits[:, exit].numpy()

        def nll(log_t: float, z=z) -> float:
            scaled = z / math.exp(log_t)
            return (logsumexp(scaled, axis=1) - scaled[range(len(z)), labels]).mean()

        best = minimize_scalar(nll, bounds=(-math.log(100), math.log(100)), method="bounded", options={"xatol": 1e-11})
        assert found[exit].item() == pytest.approx(math.exp(best.x), rel=1e-6)


@given(st.floats(0.1, 20), st.integers(51, 99))
def test_logits_of_one_margin_have_a_closed_form(margin: float, right: int) -> None:
    """With the logits (m, 0) and a share `a` of correct samples, `sigmoid(m / T) = a`."""
    logits = torch.tensor([margin, 0.0], dtype=torch.float64).expand(100, 1, 2)
    labels = (torch.arange(100) >= right).long()
    expected = margin / math.log(right / (100 - right))
    assert fit_temperatures(logits, labels).values.item() == pytest.approx(min(max(expected, 0.01), 100), rel=1e-6)


@given(st.floats(0.05, 20))
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    logits = torch.randn(60, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = logits.sum(1).argmax(1).roll(1).where(torch.arange(60) % 3 == 0, logits[:, 0].argmax(1))
    reference = fit_temperatures(logits, labels).values
    expected = (scale * reference).clamp(0.01, 100)
    torch.testing.assert_close(fit_temperatures(scale * logits, labels).values, expected, rtol=1e-6, atol=0)


def test_overconfident_logits_are_mended() -> None:
    logits, labels = calibrated(4000, 1, 10)
    overconfident = 3 * logits
    found = fit_temperatures(overconfident, labels).values
    assert found.item() == pytest.approx(3, rel=0.06)
    before = summarise(sample_statistics(overconfident[:, 0], labels))
    after = summarise(sample_statistics(overconfident[:, 0] / found, labels))
    assert after["accuracy"] == before["accuracy"]
    assert after["nll"] < before["nll"]
    assert after["ece"] < 0.03 < 0.2 < before["ece"]
    assert after["ece_mass"] < 0.03 < 0.2 < before["ece_mass"]


def test_separable_hopeless_and_constant_logits_stay_bounded() -> None:
    labels = torch.arange(30) % 3
    right = F.one_hot(labels, 3).float()
    faint, strong, wrong, flat = 1e-3 * right, 1e30 * right, -4 * right, torch.full_like(right, 3.3)
    with pytest.warns(UserWarning, match="limit"):
        values, doubts = fit_temperatures(torch.stack([faint, strong, wrong, flat], 1), labels)
    low, perfect, high, one = values.tolist()
    assert doubts == {0: "limit", 1: "smoothed", 2: "limit"}
    assert low == pytest.approx(0.01, rel=1e-6)
    assert 0.01 <= perfect <= 100
    assert high == pytest.approx(100, rel=1e-6)
    assert one == 1


def test_half_precision_is_fitted_in_double() -> None:
    logits, labels = calibrated(200, 2, 4)
    half = logits.bfloat16()
    found = fit_temperatures(half, labels), fit_temperatures(half.double(), labels)
    torch.testing.assert_close(found[0].values, found[1].values)


def test_unusable_logits_are_refused() -> None:
    logits = torch.zeros(4, 3, 2)
    logits[1, 2, 0] = float("nan")
    with pytest.raises(UserError, match=r"exits = \[2\]"):
        fit_temperatures(logits, torch.zeros(4, dtype=torch.long))
    with pytest.raises(UserError, match="validation samples = 0"):
        fit_temperatures(logits[:0], torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("samples", [1, 12, 140, 5000])
@pytest.mark.parametrize("scale", [0.2, 4.0, 100.0])
def test_right_everywhere_is_worth_as_many_samples_as_there_are(samples: int, scale: float) -> None:
    """Where all margins are alike the smoothed label is met exactly: `(n + 1) / (n + 2)` (Platt 1999)."""
    labels = torch.arange(samples) % 3
    logits = scale * F.one_hot(labels, 3).float().unsqueeze(1)
    with pytest.warns(UserWarning, match=f"path 8-4 is right on .* of {samples} validation samples"):
        fit_temperatures(logits, labels, ["path 8-4"])
    with pytest.warns(UserWarning, match=f"exit 0 is right on .* of {samples} validation samples"):
        values, doubts = fit_temperatures(logits, labels)
    assert doubts == {0: "smoothed"}
    tempered = (logits[:, 0] / values).softmax(-1).amax(-1)
    assert tempered.tolist() == pytest.approx([(samples + 1) / (samples + 2)] * samples, rel=1e-6)


def test_an_exit_without_errors_is_fitted_to_platts_targets_by_scipy() -> None:
    labels = torch.randint(0, 5, (60,))
    signal = (6 + 6 * torch.rand(60, 1)) * F.one_hot(labels, 5)
    logits = torch.stack([torch.randn(60, 5) + signal, torch.randn(60, 5) + 0.2 * signal], dim=1).double()
    z, targets = logits[:, 0].numpy(), F.one_hot(labels, 5).numpy()
    targets = targets * 61 / 62 + (1 - targets) / 62 / 4

    def loss(log_t: float) -> float:
        scaled = z / math.exp(log_t)
        return (logsumexp(scaled, axis=1) - (targets * scaled).sum(1)).mean()

    best = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-11})
    with pytest.warns(UserWarning, match="exit 0"):
        values, doubts = fit_temperatures(logits, labels)
    assert values[0].item() == pytest.approx(math.exp(best.x), rel=1e-6)
    assert doubts == {0: "smoothed"}
    assert (logits[:, 0] / values[0]).softmax(-1).amax(-1).mean() < 61 / 62


def test_one_error_that_hardly_is_one_does_not_bring_back_certainty() -> None:
    labels = torch.zeros(50, dtype=torch.long)
    logits = torch.tensor([4.0, 0.0]).repeat(50, 1, 1)
    logits[0, 0] = torch.tensor([0.0, 1e-3])
    with pytest.warns(UserWarning, match="nearly"):
        assert fit_temperatures(logits, labels).doubts == {0: "smoothed"}
    logits[0, 0] = torch.tensor([0.0, 4.0])
    values, doubts = fit_temperatures(logits, labels)
    assert doubts == {}
    assert values.item() == pytest.approx(4 / math.log(49), rel=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_the_minimum_is_that_of_a_bisection(seed: int) -> None:
    """Sharp, blunt, hopeless and nearly perfect exits, whatever path Newton's method takes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (40,), generator=draw)
    strength = 6 * torch.rand(5, 1, generator=draw) - 1
    logits = torch.randn(40, 5, 4, generator=draw) + strength * F.one_hot(labels, 4).unsqueeze(1)
    logits = (logits * torch.logspace(-3, 3, 5).unsqueeze(1)[torch.randperm(5, generator=draw)]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, doubts = fit_temperatures(logits, labels)
    margins = logits - logits.gather(2, labels[:, None, None].expand(-1, 5, 1))
    for exit in range(5):
        if doubts.get(exit) == "smoothed":
            continue
        low, high = -math.log(100), math.log(100)
        for _ in range(60):
            middle = (low + high) / 2
            weights = (margins[:, exit] / math.exp(middle)).softmax(1)
            low, high = (middle, high) if (weights * margins[:, exit]).sum() > 0 else (low, middle)
        assert values[exit].item() == pytest.approx(math.exp(low), rel=1e-6)


def test_a_large_split_in_the_order_of_its_classes_starts_from_some_of_its_samples() -> None:
    logits, labels = calibrated(400, 3, 4)
    labels, order = labels.sort()
    logits = logits[order] * torch.tensor([0.5, 1.0, 3.0]).view(3, 1) + torch.randn(400, 3, 4)
    expected = fit_temperatures(logits, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temperature, "FIRST_BYTES", 50 * 3 * 4 * 4)
        found = fit_temperatures(logits, labels)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-7, atol=0)
    assert found.values.tolist() != expected.values.tolist()
