import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch.nn import functional as F

from eenet.calibration import fit_temperatures
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
    found = fit_temperatures(logits, labels)
    for exit in range(4):
        z = logits[:, exit].numpy()

        def nll(log_t: float, z=z) -> float:
            scaled = z / math.exp(log_t)
            return (logsumexp(scaled, axis=1) - scaled[range(len(z)), labels]).mean()

        best = minimize_scalar(nll, bounds=(-math.log(100), math.log(100)), method="bounded", options={"xatol": 1e-9})
        assert found[exit].item() == pytest.approx(math.exp(best.x), rel=1e-4)


@given(st.floats(0.1, 20), st.integers(51, 99))
def test_logits_of_one_margin_have_a_closed_form(margin: float, right: int) -> None:
    """With the logits (m, 0) and a share `a` of correct samples, `sigmoid(m / T) = a`."""
    logits = torch.tensor([margin, 0.0], dtype=torch.float64).expand(100, 1, 2)
    labels = (torch.arange(100) >= right).long()
    expected = margin / math.log(right / (100 - right))
    assert fit_temperatures(logits, labels).item() == pytest.approx(min(max(expected, 0.01), 100), rel=1e-6)


@given(st.floats(0.05, 20))
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    logits = torch.randn(60, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = logits.sum(1).argmax(1).roll(1).where(torch.arange(60) % 3 == 0, logits[:, 0].argmax(1))
    reference = fit_temperatures(logits, labels)
    expected = (scale * reference).clamp(0.01, 100)
    torch.testing.assert_close(fit_temperatures(scale * logits, labels), expected, rtol=1e-6, atol=0)


def test_overconfident_logits_are_mended() -> None:
    logits, labels = calibrated(4000, 1, 10)
    overconfident = 3 * logits
    temperature = fit_temperatures(overconfident, labels)
    assert temperature.item() == pytest.approx(3, rel=0.06)
    before = summarise(sample_statistics(overconfident[:, 0], labels))
    after = summarise(sample_statistics(overconfident[:, 0] / temperature, labels))
    assert after["accuracy"] == before["accuracy"]
    assert after["nll"] < before["nll"]
    assert after["ece"] < 0.03 < 0.2 < before["ece"]
    assert after["ece_mass"] < 0.03 < 0.2 < before["ece_mass"]


def test_separable_hopeless_and_constant_logits_stay_bounded() -> None:
    labels = torch.arange(30) % 3
    right = F.one_hot(labels, 3).float()
    faint, strong, wrong, flat = 1e-3 * right, 1e30 * right, -4 * right, torch.full_like(right, 3.3)
    low, perfect, high, one = fit_temperatures(torch.stack([faint, strong, wrong, flat], 1), labels).tolist()
    assert low == pytest.approx(0.01, rel=1e-6)
    assert 0.01 <= perfect <= 100
    assert high == pytest.approx(100, rel=1e-6)
    assert one == 1


def test_half_precision_is_fitted_in_double() -> None:
    logits, labels = calibrated(200, 2, 4)
    half = logits.bfloat16()
    torch.testing.assert_close(fit_temperatures(half, labels), fit_temperatures(half.double(), labels))


def test_unusable_logits_are_refused() -> None:
    logits = torch.zeros(4, 3, 2)
    logits[1, 2, 0] = float("nan")
    with pytest.raises(UserError, match=r"exits = \[2\]"):
        fit_temperatures(logits, torch.zeros(4, dtype=torch.long))
    with pytest.raises(UserError, match="validation samples = 0"):
        fit_temperatures(logits[:0], torch.zeros(0, dtype=torch.long))
