"""Optimal stopping: what is known, the regressions, backward induction against exact conditional means, routing."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, entropy, norm
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from eenet.calibration.points import gate_from_dict, gate_to_dict, policy_from_dict, policy_to_dict
from eenet.calibration.stopping import (
    RIDGE,
    StoppingValues,
    find_judge,
    fit_stopping,
    fit_values,
    joined,
    leaving_losses,
    observe,
    ridge,
)
from eenet.errors import UserError
from eenet.exporting import export_network
from eenet.gates import StoppingGate, TreeStoppingGate
from eenet.gates.stopping import describe
from eenet.network import EarlyExitNetwork
from eenet.policies import BestWay, Threshold
from eenet.runtime import load
from eenet.tree import Tree
from tests._dummies import make_network

OPTIONS = [{}, {"memory": False}, {"recall": True}, {"probabilities": False}]
COSTS = torch.tensor([0.2, 0.5, 0.8, 1.1])


def drifting(samples: int, exits: int, classes: int = 10) -> Tensor:
    """Logits that become surer from exit to exit."""
    noise = torch.randn(samples, exits, classes) * torch.linspace(2, 0.5, exits).view(1, -1, 1)
    return torch.randn(samples, 1, classes) * 2 + noise


def test_what_a_softmax_says_is_what_numpy_says() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 0.0], [40.0, -40.0, 0.0]])
    found = describe(logits).numpy()
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    squares = p**2 / (p**2).sum(1, keepdims=True)
    top = -np.sort(-p, axis=1)
    with np.errstate(divide="ignore"):
        odds, ratio = np.log(top[:, 0] / (1 - top[:, 0])), np.log(top[:, 0] / top[:, 1])
    columns = [top[:, 0], entropy(p, axis=1), top[:, 0] - top[:, 1], entropy(squares, axis=1)]
    expected = np.stack([*columns, odds.clip(-5, 12), ratio.clip(0, 12), *np.sqrt(p).T], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_memory_is_the_exit_before_and_how_long_predictions_agree() -> None:
    logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
    gate, runs = StoppingGate(4, 2), []
    memory, before = gate.start(logits[:, 0]), torch.zeros(1, 8)
    for exit in range(4):
        known, memory = gate.known(logits[:, exit], memory)
        own = describe(logits[:, exit])
        assert torch.equal(known[:, :16], torch.cat([own, before], dim=1))
        runs.append(known[0, [16, 18]].tolist())
        if exit:
            probability = logits[:, exit - 1].softmax(-1)[0, logits[0, exit].argmax()]
            assert known[0, 17].item() == pytest.approx(probability.item(), abs=1e-6)
        before = own
    assert runs == [[0, 0], [1, 1], [1, 2], [0, 0]]


@pytest.mark.parametrize("recall", [False, True])
def test_without_probabilities_the_figures_alone_are_known(recall: bool) -> None:
    logits, classes = torch.randn(5, 3, 7), 7
    whole, cheap = StoppingGate(3, classes, recall=recall), StoppingGate(3, classes, recall=recall, probabilities=False)
    kept = [*range(6), *range(6 + classes, 12 + classes), *range(12 + 2 * classes, whole.num_inputs)]
    memory, little = whole.start(logits[:, 0]), cheap.start(logits[:, 0])
    for exit in range(3):
        known, memory = whole.known(logits[:, exit], memory)
        found, little = cheap.known(logits[:, exit], little)
        assert torch.equal(found, known[:, kept])
    alone = StoppingGate(3, classes, memory=False, probabilities=False)
    assert torch.equal(alone.known(logits[:, 0], ())[0], describe(logits[:, 0])[:, :6])
    assert (alone.num_inputs, cheap.num_inputs) == (6, 15 + 2 * recall)


@pytest.mark.parametrize("probabilities", [False, True])
def test_samples_may_be_read_in_batches(probabilities: bool) -> None:
    logits, gate = drifting(300, 4), StoppingGate(3, 10, probabilities=probabilities)
    together = fit_stopping(gate, logits, COSTS, [0.01, 0.3])
    parts = [observe(gate, rows, rows[:, -1]) for rows in logits.split(64)]
    apart = fit_values(gate, joined(parts), COSTS, [0.01, 0.3])
    torch.testing.assert_close(apart(logits[:, :3]), together(logits[:, :3]), atol=1e-6, rtol=1e-5)


def test_the_regression_is_that_of_scikit_learn() -> None:
    inputs = torch.cat([torch.randn(50, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 2, torch.ones(50, 1)], dim=1)
    targets = torch.randn(50, 3, dtype=torch.float64)
    scaled = StandardScaler().fit(inputs.double().numpy())
    model = Ridge(alpha=RIDGE * 50).fit(scaled.transform(inputs.double().numpy()), targets.numpy())
    weight, bias = ridge(inputs, targets)
    expected = model.predict(scaled.transform(inputs.double().numpy()))
    np.testing.assert_allclose((inputs.double() @ weight + bias).numpy(), expected, atol=1e-8)


def signals(samples: int, tree: Tree, kinds: int = 4) -> tuple[Tensor, Tensor]:
    """A process that remembers nothing: each node shows one of some signals, drawn by the signal of its parent.

    Returns:
        Signals `(samples, nodes)` and logits `(samples, nodes, 3)`.
    """
    shown = torch.zeros(samples, len(tree.nodes), dtype=torch.long)
    table = torch.randn(len(tree.nodes), kinds, 3) * 2
    for node, path in enumerate(tree.nodes):
        parent = torch.zeros(samples, dtype=torch.long) if len(path) == 1 else shown[:, tree.index[path[:-1]]]
        odds = torch.rand(kinds, kinds) ** 3
        shown[:, node] = torch.multinomial(odds[parent], 1).squeeze(1)
    return shown, torch.stack([table[node][shown[:, node]] for node in range(len(tree.nodes))], dim=1)


@pytest.mark.parametrize("paths", [[(32, 32, 32)], [(8, 8, 8), (8, 4, 4), (8, 4, 8), (4, 4, 4)]])
def test_values_are_the_exact_conditional_means_where_a_signal_says_all(
    paths: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eenet.calibration.stopping.RIDGE", 1e-9)
    tree, price = Tree.of(paths), 0.3
    shown, logits = signals(5_000, tree)
    costs = torch.tensor([0.3 * len(path) + 0.01 * path[-1] / 8 for path in tree.nodes])
    gate = TreeStoppingGate(tree.nodes, 3) if tree.branches else StoppingGate(2, 3, memory=False)
    judge = tree.index[tree.full[0]] if tree.branches else 1  # any node may judge
    scores = fit_stopping(gate, logits, costs, [price], judge)(logits[:, : tree.num_early]).squeeze(-1)
    leaving = leaving_losses(logits, judge) + price * costs.double()
    values = {node: leaving[:, node] for node in range(tree.num_early, len(tree.nodes))}
    compared = 0
    for node in reversed(range(tree.num_early)):
        ways, best, way = tree.children(node), torch.empty(len(logits)), torch.empty(len(logits), dtype=torch.long)
        for signal in shown[:, node].unique():
            rows = shown[:, node] == signal
            means = [(values[child] - leaving[:, node])[rows].mean().item() for child in ways]
            found = scores[rows, node].reshape(int(rows.sum()), -1)[0, : len(ways)].tolist()
            assert found == pytest.approx(means, abs=2e-3)
            best[rows], way[rows] = min(means), means.index(min(means))
            compared += len(means)
        on = torch.stack([values[child] for child in ways]).gather(0, way.unsqueeze(0)).squeeze(0)
        values[node] = torch.where(best >= 0, leaving[:, node], on)
    assert compared >= 8


@pytest.mark.parametrize("options", OPTIONS)
def test_a_higher_price_leaves_earlier_and_one_pass_scores_as_each_gate(options: dict[str, bool]) -> None:
    logits = drifting(600, 4)
    values = fit_stopping(StoppingGate(3, 10, **options), logits, COSTS, [0.01, 0.1, 1.0])
    scores = values(logits[:, :3])
    exits = [Threshold([0.0] * 3).exits(logits.argmax(-1), found).double().mean() for found in scores.unbind(-1)]
    assert exits == sorted(exits, reverse=True)
    assert exits[0] > exits[-1]
    for gate, found in zip(values.gates, scores.unbind(-1), strict=True):
        assert torch.equal(gate(logits[:, :3]), found)


def stopping_network(options: dict[str, bool]) -> tuple[EarlyExitNetwork, Threshold]:
    network = make_network()
    with torch.no_grad():
        logits = network(torch.randn(400, 1, 8, 8)).logits * 4
    gate = fit_stopping(StoppingGate(3, 10, **options), logits, network.costs.fractions(), [0.1]).gates[0]
    network = network.with_gate(gate)  # type: ignore[arg-type]
    with torch.no_grad():
        scores = network(torch.randn(64, 1, 8, 8)).scores
    return network, Threshold([scores.median().item()] * 3)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch", [1, 33])
@torch.no_grad()
def test_routing_gives_the_answers_at_the_decided_exits(options: dict[str, bool], batch: int) -> None:
    network, policy = stopping_network(options)
    for inputs in torch.randn(99, 1, 8, 8).split(batch):
        outputs, routed = network(inputs), network.route(inputs, policy)
        exits = policy.exits(outputs.logits.argmax(-1), outputs.scores)
        answers = torch.cat([network.gate.answers(outputs.logits[:, :3]), outputs.logits[:, 3:]], dim=1)
        assert routed.exits.tolist() == exits.tolist()
        torch.testing.assert_close(routed.logits, answers[torch.arange(len(inputs)), exits], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("gained", "lost", "full", "judge"), [(40, 20, -1, 1), (30, 20, -1, 2), (30, 20, 0, 0)])
def test_another_node_judges_only_where_chance_does_not_explain_its_lead(
    gained: int, lost: int, full: int, judge: int
) -> None:
    correct = torch.ones(1000, 3, dtype=torch.bool)
    correct[:gained, [0, 2]] = False
    correct[1000 - lost :, 1] = False
    chance = binomtest(gained, gained + lost, alternative="greater").pvalue  # the exact form of McNemar's test
    assert (chance < norm.sf(2)) == (judge == 1)
    assert find_judge(correct, full) == judge


def test_a_handful_of_samples_makes_no_judge() -> None:
    for samples in range(1, 5):
        assert find_judge(torch.tensor([[True, False]]).repeat(samples, 1)) == 1
    assert find_judge(torch.tensor([[True, False]]).repeat(5, 1)) == 0


def test_recall_answers_by_the_exit_that_the_last_one_agrees_with() -> None:
    first, late = torch.tensor([4.0, 0.0, 0.0]), torch.tensor([0.0, 0.3, 0.0])  # the second exit knows nothing
    logits = torch.stack([torch.stack([first, late, first]), torch.stack([late, first, first])]).repeat(50, 1, 1)
    gate = fit_stopping(StoppingGate(2, 3, recall=True), logits, torch.tensor([0.2, 0.6, 1.0]), [0.01]).gates[0]
    assert gate.answers(logits[:2, :2]).argmax(-1).tolist() == [[0, 0], [1, 0]]
    plain = fit_stopping(StoppingGate(2, 3), logits, torch.tensor([0.2, 0.6, 1.0]), [0.01]).gates[0]
    assert torch.equal(plain.answers(logits[:2, :2]), logits[:2, :2])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_that_is_no_number_changes_no_other(options: dict[str, bool]) -> None:
    network, policy = stopping_network(options)
    inputs = torch.randn(8, 1, 8, 8)
    spoilt = inputs.clone()
    spoilt[3] = torch.nan
    kept = torch.arange(8) != 3
    assert network.route(spoilt, policy).exits[kept].tolist() == network.route(inputs, policy).exits[kept].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_an_export_with_all_that_is_remembered_routes_as_the_network(format: str, tmp_path: Path) -> None:
    network, policy = stopping_network({"recall": True})
    inputs = torch.randn(40, 1, 8, 8)
    export_network(network, policy, tmp_path / "out", inputs[:3], format)  # type: ignore[arg-type]
    runtime, expected = load(tmp_path / "out"), network.route(inputs, policy)
    found = runtime(inputs)
    assert found.exits.tolist() == expected.exits.tolist()
    assert len(found.exits.unique()) > 1
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)


def test_gates_and_policies_are_written_and_read() -> None:
    tree = Tree.of([(8, 8), (8, 4), (4, 4)])
    for gate in (StoppingGate(3, 10, recall=True), TreeStoppingGate(tree.nodes, 10)):
        gate.weight.normal_()
        again = gate_from_dict(gate_to_dict(gate))
        assert torch.equal(again(logits := torch.randn(5, gate.num_gates, 10)), gate(logits))
    for threshold in (0.25, float("inf")):
        policy = policy_from_dict(policy_to_dict(BestWay(4, threshold, tree.nodes)))
        assert (policy.first_node, policy.threshold) == (tree.index[4,], threshold)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("samples", "exits", "prices", "message"),
    [
        (30, 4, [0.1], "needs more than 35 training samples for its regressions and has 30"),
        (100, 5, [0.1], "5 exits of 10 classes'?: are of another network"),
        (100, 4, [], "one or more prices"),
        (100, 4, [-1.0], "one or more prices"),
    ],
)
def test_what_cannot_be_fitted_is_refused(samples: int, exits: int, prices: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_stopping(StoppingGate(3, 10), torch.randn(samples, exits, 10), COSTS, prices)


def test_a_way_that_is_not_there_is_never_taken() -> None:
    tree = Tree.of([(8, 8), (8, 4), (4, 4)])  # from 4 only 4 goes on
    _, logits = signals(500, tree)
    values = fit_stopping(TreeStoppingGate(tree.nodes, 3), logits, torch.tensor([0.2, 0.1, 0.9, 0.3, 0.4]), [0.01, 0.3])
    assert isinstance(values, StoppingValues)
    taken: dict[int, set[int]] = defaultdict(set)
    for scores in values(logits[:, : tree.num_early]).unbind(-1):
        for width in (8, 4):
            policy = BestWay(width, 0.0, tree.nodes)
            for knob in policy.knobs(scores).tolist():
                taken[width] |= set(policy.turned(knob).exits(logits.argmax(-1), scores).tolist())
    assert taken[4] == {1, 4}
    assert {0, 2} <= taken[8] <= {0, 2, 3}
