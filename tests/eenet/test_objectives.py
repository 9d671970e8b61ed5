"""The objectives against literal implementations, one sample at a time."""

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from eenet.errors import UserError
from eenet.objectives import (
    DeepSupervision,
    SelfDistillation,
    WeightNetwork,
    assign_exits,
    assigned_loss,
    best_exits,
    centred_weights,
    cross_entropies,
    exit_weighted_loss,
    gate_loss,
    gate_targets,
    geometric_shares,
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
@pytest.mark.parametrize("objective", ["ce", "zero_one", "prob", "prob_if_right"])
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
                "prob_if_right": -max(probabilities(exit)) if exit.index(max(exit)) == label else 0.0,
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


@pytest.mark.parametrize("weights", ["uniform", "linear"])
def test_deep_supervision_sums_weighted_cross_entropies(
    weights: str, logits: torch.Tensor, labels: torch.Tensor
) -> None:
    expected = 0.0
    for sample, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for number, exit in enumerate(sample, start=1):
            weight = {"uniform": 1, "linear": number / (1 + 2 + 3 + 4) * 4}[weights]
            expected += weight * literal_ce(exit, label) / BATCH
    loss = DeepSupervision(weights).loss(logits, labels, logits[:, -1])  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("weight", "temperature"), [(0.7, 2.5), (0.0, 1.0)])
def test_self_distillation_by_hand(
    weight: float, temperature: float, logits: torch.Tensor, labels: torch.Tensor
) -> None:
    teacher = torch.randn(BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    expected = 0.0
    for sample, label, known in zip(logits.tolist(), labels.tolist(), teacher.tolist(), strict=True):
        q = probabilities([value / temperature for value in known])
        for exit in sample:
            p = probabilities([value / temperature for value in exit])
            divergence = sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))
            expected += (literal_ce(exit, label) + weight * temperature**2 * divergence) / BATCH
    loss = SelfDistillation(weight, temperature).loss(logits, labels, teacher)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert teacher.grad is None


def test_the_last_exit_learns_nothing_from_itself(logits: torch.Tensor, labels: torch.Tensor) -> None:
    gradients = []
    for supervision in (DeepSupervision(), SelfDistillation(5.0, 2.0)):
        loss = supervision.loss(logits, labels, logits[:, -1])
        gradients.append(torch.autograd.grad(loss, logits)[0])
    torch.testing.assert_close(gradients[0][:, -1], gradients[1][:, -1])
    assert not torch.allclose(gradients[0][:, 0], gradients[1][:, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeepSupervision("quadratic"), r"supervision\.weights = 'quadratic'"),  # type: ignore[arg-type]
        (lambda: SelfDistillation(weight=-1), r"supervision\.weight = -1"),
        (lambda: SelfDistillation(temperature=0), r"supervision\.temperature = 0"),
        (lambda: WeightNetwork(4, 3, hidden=0), r"model\.weight_hidden = 0"),
        (lambda: WeightNetwork(4, 3, strength=1.0), r"model\.weight_strength = 1\.0"),
    ],
)
def test_supervision_that_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


values = arrays("float64", array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-30, 30))


@given(values.map(torch.from_numpy), st.floats(0, 0.99))
def test_weights_are_one_on_average_and_stay_near(raw: torch.Tensor, strength: float) -> None:
    weights = centred_weights(raw, strength)
    assert weights.mean().item() == pytest.approx(1)
    assert weights.max() - weights.min() <= 2 * strength + 1e-9
    order = raw.flatten().argsort()
    assert (weights.flatten()[order].diff() >= -1e-12).all()


@given(values.map(torch.from_numpy), st.floats(0.2, 3))
def test_the_most_confident_leave_first(confidences: torch.Tensor, ratio: float) -> None:
    batch, exits = confidences.shape
    shares = geometric_shares(exits, ratio)
    assert shares.sum().item() == pytest.approx(1)
    assert (shares[1:] / shares[:-1]).tolist() == pytest.approx([ratio] * (exits - 1))
    assigned = assign_exits(confidences, shares).tolist()
    rows = confidences.tolist()
    staying = list(range(batch))
    for exit in range(exits - 1):
        leaving = [i for i in staying if assigned[i] == exit]
        assert len(leaving) == int(shares[exit].item() * batch)
        staying = [i for i in staying if assigned[i] != exit]
        if leaving and staying:
            assert min(rows[i][exit] for i in leaving) >= max(rows[i][exit] for i in staying)
    assert {assigned[i] for i in staying} <= {exits - 1}


def test_the_meta_loss_averages_within_each_exit(logits: torch.Tensor, labels: torch.Tensor) -> None:
    leave = [0, 2, 2, 0, 0, 3]
    expected = 0.0
    for exit in set(leave):
        rows = [i for i in range(BATCH) if leave[i] == exit]
        expected += sum(literal_ce(logits[i, exit].tolist(), labels[i].item()) for i in rows) / len(rows)
    assert assigned_loss(logits, labels, torch.tensor(leave)).item() == pytest.approx(expected)


def test_the_weight_network_sends_no_gradient_to_the_losses() -> None:
    losses = torch.rand(5, 4, requires_grad=True)
    network = WeightNetwork(4, 3, hidden=8)
    weights = network(losses)
    assert weights.shape == (5, 3)
    weights.square().sum().backward()
    assert losses.grad is None
    assert all(parameter.grad is not None for parameter in network.parameters())
