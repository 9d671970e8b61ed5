import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from scipy.stats import entropy

from eenet.gates import ConfidenceGate, Gate, SchedulerGate, UncertaintyGate, confidence, uncertainty_statistics


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8))
def test_statistics_against_scipy(row: list[float]) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    p = logits.softmax(-1)[0].numpy()
    top = sorted(p)[::-1]
    expected = [top[0], entropy(p), top[0] - top[1], entropy(p**2 / (p**2).sum())]
    assert uncertainty_statistics(logits)[0].tolist() == pytest.approx(expected, abs=1e-8)


def test_statistics_stay_finite_where_probabilities_underflow() -> None:
    assert uncertainty_statistics(torch.tensor([[0.0, 500.0, -500.0]])).isfinite().all()


@pytest.mark.parametrize(
    "gate", [UncertaintyGate(3), ConfidenceGate(3), ConfidenceGate(3, "entropy"), SchedulerGate(3, 10)]
)
def test_one_gate_at_a_time_agrees_with_all_together(gate: Gate) -> None:
    logits = torch.randn(5, 3, 10)
    together = gate(logits)
    memory = gate.start(logits[:, 0])
    for exit in range(3):
        scores, memory = gate.at(exit, logits[:, exit], memory)
        torch.testing.assert_close(scores, together[:, exit])


@torch.no_grad()
def test_the_scheduler_sees_agreement_and_earlier_scores() -> None:
    gate = SchedulerGate(3, 4)
    logits = torch.eye(4)[[2, 1, 2]].mul(3).unsqueeze(0)  # predicts 2, 1, 2
    votes, earlier = gate.start(logits[:, 0])
    agreements, scores = [], []
    for exit, hook in enumerate([agreements.append] * 3):
        handle = gate.scorers[exit].register_forward_pre_hook(lambda _, inputs, hook=hook: hook(inputs[0][0, 6].item()))
        score, (votes, earlier) = gate.at(exit, logits[:, exit], (votes, earlier))
        handle.remove()
        scores.append(score.sigmoid().item())
    assert agreements == pytest.approx([1, 1 / 2, 2 / 3])
    assert earlier[0].tolist() == pytest.approx(scores)
    assert votes[0].tolist() == [0, 1, 2, 0]


def test_confidences_of_a_known_distribution() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert confidence(logits).item() == pytest.approx(0.7)
    assert confidence(logits, "margin").item() == pytest.approx(0.5)
    expected = 0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)
    assert confidence(logits, "entropy").item() == pytest.approx(expected)
