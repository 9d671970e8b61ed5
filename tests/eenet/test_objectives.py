"""The objectives against literal implementations, one sample at a time."""

import math

import pytest
import torch

from eenet.objectives import (
    best_exits,
    cross_entropies,
    exit_weighted_loss,
    gate_loss,
    gate_targets,
    positive_weights,
    weighted_sum_loss,
)

BATCH, EXITS, CLASSES = 6, 4, 5


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(BATCH, EXITS, CLASSES, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(CLASSES, (BATCH,))


def probabilities(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def literal_ce(row: list[float], label: int) -> float:
    return -math.log(probabilities(row)[label])


def test_cross_entropies_are_those_of_each_exit(logits: torch.Tensor, labels: torch.Tensor) -> None:
    expected = [
        [literal_ce(row, label) for row in sample]
        for sample, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    torch.testing.assert_close(cross_entropies(logits, labels), torch.tensor(expected).double(), atol=1e-6, rtol=1e-6)


def test_exit_weighted_loss_without_rescaling(logits: torch.Tensor, labels: torch.Tensor) -> None:
    weights = torch.rand(BATCH, EXITS, dtype=torch.float64)
    expected = 0.0
    for sample, label, row in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        expected += sum(p * literal_ce(exit, label) for p, exit in zip(row, sample, strict=True)) / BATCH
    assert exit_weighted_loss(logits, labels, weights, rescale=False).item() == pytest.approx(expected)


def test_rescaled_loss_equals_the_plain_sum_and_keeps_the_proportions_of_the_gradient(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    weights = torch.rand(BATCH, EXITS, dtype=torch.float64)
    loss = exit_weighted_loss(logits, labels, weights, rescale=True)
    total = 0.0
    gradient = torch.zeros(BATCH, EXITS, CLASSES, dtype=torch.float64)
    for i, (sample, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        losses = [literal_ce(exit, label) for exit in sample]
        weighted = sum(p * value for p, value in zip(weights[i].tolist(), losses, strict=True))
        scale = sum(losses) / weighted
        total += sum(losses) / BATCH
        for exit in range(EXITS):
            p = probabilities(sample[exit])
            for c in range(CLASSES):
                gradient[i, exit, c] = scale * weights[i, exit].item() * (p[c] - (c == label)) / BATCH
    assert loss.item() == pytest.approx(total)
    loss.backward()
    torch.testing.assert_close(logits.grad, gradient, atol=1e-7, rtol=1e-6)


def test_a_sample_without_weight_adds_nothing(logits: torch.Tensor, labels: torch.Tensor) -> None:
    weights = torch.zeros(BATCH, EXITS, dtype=torch.float64)
    loss = exit_weighted_loss(logits, labels, weights)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_weighted_sum_loss_is_linear_in_its_weights(logits: torch.Tensor, labels: torch.Tensor) -> None:
    means = cross_entropies(logits, labels).mean(0)
    for exit in range(EXITS):
        one = torch.eye(EXITS, dtype=torch.float64)[exit]
        torch.testing.assert_close(weighted_sum_loss(logits, labels, one), means[exit])


@pytest.mark.parametrize("tradeoff", [0.0, 0.3, 2.0, 100.0])
@pytest.mark.parametrize("objective", ["ce", "zero_one", "prob"])
def test_best_exits_and_targets_by_brute_force(
    objective: str, tradeoff: float, logits: torch.Tensor, labels: torch.Tensor
) -> None:
    costs = [0.2, 0.5, 0.8, 1.0]
    best, targets = [], []
    for sample, label in zip(logits.tolist(), labels.tolist(), strict=True):
        totals = []
        for exit, cost in zip(sample, costs, strict=True):
            loss = {
                "ce": literal_ce(exit, label),
                "zero_one": float(exit.index(max(exit)) != label),
                "prob": -probabilities(exit)[label],
            }[objective]
            totals.append(loss + tradeoff * cost)
        best.append(totals.index(min(totals)))
        targets.append([float(best[-1] <= gate) for gate in range(EXITS - 1)])
    found = best_exits(logits, labels, torch.tensor(costs), tradeoff, objective)  # type: ignore[arg-type]
    assert found.tolist() == best
    assert gate_targets(found, EXITS - 1).tolist() == targets
    if tradeoff == 100:
        assert set(best) == {0}


def test_gate_loss_is_weighted_binary_cross_entropy() -> None:
    scores, targets = torch.randn(BATCH, 3), torch.randint(2, (BATCH, 3)).float()
    weights = torch.tensor([0.5, 1.0, 5.0])
    expected = 0.0
    for row, wanted in zip(scores.tolist(), targets.tolist(), strict=True):
        for score, target, weight in zip(row, wanted, weights.tolist(), strict=True):
            g = 1 / (1 + math.exp(-score))
            expected -= weight * target * math.log(g) + (1 - target) * math.log(1 - g)
    assert gate_loss(scores, targets, weights).item() == pytest.approx(expected / (BATCH * 3), rel=1e-5)


def test_positive_weights_are_the_ratio_of_zeros_to_ones_clipped_at_five() -> None:
    targets = torch.tensor([[1, 0, 0, 1]] + [[1, 0, 1, 0]] * 2 + [[0, 0, 1, 0]] * 7).float()
    assert positive_weights(targets.sum(0), len(targets)).tolist() == pytest.approx([7 / 3, 5.0, 1 / 9, 5.0])
