from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from eenet.calibration.class_thresholds import class_offsets
from eenet.errors import UserError
from eenet.policies import (
    ClassThresholds,
    FixedExit,
    Patience,
    Policy,
    RandomExits,
    SequentialGates,
    Threshold,
    exit_distribution,
)

gate_logits = arrays(
    "float32",
    array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.floats(-60, 60, width=32),
).map(torch.from_numpy)


def literal_distribution(gates: list[float]) -> list[float]:
    """Equation of the method, read word by word for one sample."""
    taken, probabilities = 0.0, []
    for gate in gates:
        probabilities.append(max(min(gate, 1 - taken), 0.0))
        taken += gate
    return [*probabilities, 1 - sum(probabilities)]


@given(gate_logits)
def test_exit_distribution_sums_to_one_and_lies_in_the_unit_interval(logits: torch.Tensor) -> None:
    distribution = exit_distribution(logits)
    assert distribution.shape == (logits.shape[0], logits.shape[1] + 1)
    assert ((distribution >= 0) & (distribution <= 1)).all()
    torch.testing.assert_close(distribution.sum(1), torch.ones(len(logits)))


@given(gate_logits)
def test_exit_distribution_is_the_papers_equation(logits: torch.Tensor) -> None:
    expected = [literal_distribution(row) for row in logits.double().sigmoid().tolist()]
    torch.testing.assert_close(
        exit_distribution(logits.double()), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
    )


@given(gate_logits)
def test_hard_decision_follows_the_conditional_probabilities(logits: torch.Tensor) -> None:
    logits = logits.double()
    predictions = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.long)
    exits = SequentialGates().exits(predictions, logits)
    for gates, exit in zip(logits.sigmoid().tolist(), exits.tolist(), strict=True):
        distribution, staying = literal_distribution(gates), 1.0
        conditionals = []
        for probability in distribution:
            conditionals.append(probability / staying if staying > 1e-9 else 1.0)
            staying *= 1 - min(conditionals[-1], 1.0)
        if all(abs(value - 0.5) > 1e-6 for value in conditionals):
            assert exit == next((i for i, value in enumerate(conditionals) if value >= 0.5), len(gates))


@given(gate_logits)
def test_without_the_clip_a_sample_leaves_where_a_gate_is_at_least_one_half(logits: torch.Tensor) -> None:
    predictions = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.long)
    halves = (logits.sigmoid() >= 0.5).tolist()
    expected = [row.index(True) if any(row) else len(row) for row in halves]
    assert SequentialGates(clip=False).exits(predictions, logits).tolist() == expected
    assert SequentialGates(clip=False).turned(0.5).arguments() == {"shift": -0.5, "clip": False}


def test_per_class_thresholds_by_brute_force_at_every_setting() -> None:
    predictions, scores = torch.randint(3, (40, 4)), torch.rand(40, 3)
    policy = ClassThresholds(0.4, [0.0, 0.1, 0.3])
    knobs = policy.knobs(scores)[::50]
    departures = policy.departures(predictions, scores, knobs)
    for place, knob in enumerate(knobs.tolist()):
        expected = []
        for classes, row in zip(predictions.tolist(), scores.double().tolist(), strict=True):
            reached = [row[exit] - policy.offsets[classes[exit]].item() >= knob for exit in range(3)]
            expected.append(reached.index(True) if any(reached) else 3)
        assert policy.turned(knob).exits(predictions, scores).tolist() == expected
        assert [int((row <= place).sum()) for row in departures] == expected
    assert set(policy.turned(knobs[0].item()).exits(predictions, scores).tolist()) == {0}


def test_classes_that_are_told_apart_more_clearly_have_lower_thresholds() -> None:
    logits, labels = torch.randn(90, 2, 3), torch.arange(3).repeat(30)
    logits[torch.arange(90), :, labels] += torch.tensor([3.0, 0.5, 1.5])[labels].unsqueeze(1)
    p = torch.softmax(logits, -1).double().numpy().mean(1)
    clear = []
    for label in range(3):
        top = np.sort(p[(labels == label).numpy()].mean(0))
        clear.append(top[-1] - top[-2])
    expected = [(max(clear) - value) / (max(clear) - min(clear)) for value in clear]
    assert class_offsets(logits, labels).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected.index(0.0) == 0


@given(gate_logits, st.floats(0, 5))
def test_a_larger_shift_never_leaves_later(logits: torch.Tensor, shift: float) -> None:
    predictions = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.long)
    later, earlier = SequentialGates(), SequentialGates(shift)
    assert (earlier.exits(predictions, logits) <= later.exits(predictions, logits)).all()


def test_threshold_leaves_at_the_first_score_that_reaches_it() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.4, 0.7], [0.4, 0.6]])
    exits = Threshold([0.5, 0.7]).exits(torch.zeros(3, 3), scores)
    assert exits.tolist() == [0, 1, 2]


def test_wrong_number_of_thresholds_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.thresholds .* 3 are needed .* got 2"):
        Threshold([0.1, 0.2]).check(4)


def test_thresholds_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="must be a number"):
        Threshold([float("nan")])


@pytest.mark.parametrize("exit", [3, -2])
def test_a_fixed_exit_that_is_not_there_is_refused(exit: int) -> None:
    with pytest.raises(UserError, match="exits 0 to 2"):
        FixedExit(exit).check(3)


@pytest.mark.parametrize(("exit", "expected"), [(0, 0), (1, 1), (-1, 2), (2, 2)])
def test_a_fixed_exit_takes_everybody(exit: int, expected: int) -> None:
    assert FixedExit(exit).exits(torch.zeros(4, 3), torch.randn(4, 2)).tolist() == [expected] * 4


def test_an_infinite_shift_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.shift"):
        SequentialGates(float("inf"))


predicted = arrays("int64", array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=7), elements=st.integers(0, 2))


@given(predicted.map(torch.from_numpy), st.integers(1, 4))
def test_patience_counts_agreeing_exits_in_a_row(predictions: torch.Tensor, patience: int) -> None:
    num_exits = predictions.shape[1]
    exits = Patience(patience).exits(predictions, torch.zeros(len(predictions), num_exits - 1))
    for row, exit in zip(predictions.tolist(), exits.tolist(), strict=True):
        agreeing = [i for i in range(patience, num_exits - 1) if len(set(row[i - patience : i + 1])) == 1]
        assert exit == (agreeing[0] if agreeing else num_exits - 1)


def test_random_exits_leave_in_the_given_shares() -> None:
    shares = [0.2, 0.0, 0.5, 0.3]
    exits = RandomExits(shares).exits(torch.zeros(20_000, 4), torch.zeros(20_000, 3))
    found = torch.bincount(exits, minlength=4) / len(exits)
    assert found.tolist() == pytest.approx(shares, abs=0.015)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patience(0), r"policy\.patience = 0"),
        (lambda: RandomExits([0.5, 0.6]), "sum to 1"),
        (lambda: RandomExits([1.5, -0.5]), "probabilities"),
        (lambda: RandomExits([0.5, 0.5]).check(3), "3 are needed"),
    ],
)
def test_patience_and_shares_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_infinite_thresholds_can_be_turned() -> None:
    scores = torch.tensor([[0.2, 0.3], [0.8, 0.4]])
    policy = Threshold([0.5, float("inf")])
    knobs = policy.knobs(scores).tolist()
    assert knobs == pytest.approx([float("-inf"), -0.3, 0.3, float("inf")])
    exits = [policy.turned(knob).exits(torch.zeros(2, 3), scores).tolist() for knob in knobs]
    assert exits == [[0, 0], [0, 0], [2, 0], [2, 2]]


@given(gate_logits, st.sampled_from([SequentialGates(), Threshold([0.0] * 8), Patience()]))
def test_knobs_go_from_the_cheapest_policy_to_the_dearest(logits: torch.Tensor, policy: Policy) -> None:
    num_gates = logits.shape[1]
    if isinstance(policy, Threshold):
        policy = Threshold(policy.thresholds[:num_gates].tolist())
    predictions = torch.arange(num_gates + 1).remainder(2).cummax(0).values.expand(len(logits), -1)
    knobs = policy.knobs(logits)
    means = [
        policy.turned(knob).exits(predictions, logits).double().mean() for knob in knobs[:: max(1, len(knobs) // 25)]
    ]
    assert all(means[i] <= means[i + 1] for i in range(len(means) - 1))
    dearest = policy.turned(knobs[-1].item()).exits(predictions, logits)
    assert (dearest == num_gates).all() or isinstance(policy, Patience)
    if not isinstance(policy, Patience):
        assert (policy.turned(knobs[0].item()).exits(predictions, logits) == 0).all()
