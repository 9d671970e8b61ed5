"""Optimal stopping with learned values: at which exits leaving costs less than the best way on, without labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eenet.calibration.logits import Logits, spread, take
from eenet.errors import UserError
from eenet.gates import StoppingGate, TreeStoppingGate
from eenet.gates.stopping import describe
from eenet.tree import Tree

TRADEOFFS: list[float] = torch.logspace(-2.6, 0.2, 26, dtype=torch.float64).tolist()
"""Values of lambda that are compared: prices of the full network's cost in units of the loss of leaving."""

RIDGE = 1e-3
"""Added to the diagonal of the inputs' correlations."""

NEVER = 1e9
"""Score of a way on that is not there."""

FIT_BYTES = 2**28
"""Bytes of what is known of the samples at all exits, above which values are fitted to some of the samples."""


class StoppingValues:
    """Gates for several values of lambda, all fitted to the same samples.

    Args:
        tradeoffs: The values of lambda.
        gates: One for each.
    """

    def __init__(self, tradeoffs: Sequence[float], gates: Sequence[Any]) -> None:
        self.tradeoffs, self.gates = list(tradeoffs), list(gates)
        self.num_gates = gates[0].num_gates

    def __call__(self, logits: Tensor) -> Tensor:
        """What all gates say, the last axis being the lambdas, from `(batch, gates, classes)`."""
        first = self.gates[0]
        if not isinstance(first, StoppingGate):
            return torch.stack([gate(logits) for gate in self.gates], dim=-1)
        memory, scores = first.start(logits[:, 0]), []
        for exit in range(self.num_gates):  # what is known is the same for all
            known, passed = first.known(logits[:, exit], memory)
            found = [gate.score(exit, logits[:, exit], known, passed) for gate in self.gates]
            scores.append(torch.stack([score for score, _ in found], dim=-1))
            memory = found[0][1]
        return torch.stack(scores, dim=1)

    def answers(self, logits: Tensor) -> Tensor:
        """What a sample is answered with at every exit; no lambda changes it."""
        return self.gates[0].answers(logits)


def most_samples(gate: StoppingGate | TreeStoppingGate) -> int:
    """How many samples `fit_stopping` reads at most."""
    return max(1, FIT_BYTES // (4 * max(1, gate.num_gates) * gate.num_inputs))


def leaving_losses(logits: Tensor, judge: int | Tensor = -1) -> Tensor:
    """Loss of leaving at each node, without labels: one minus a judge's probability of the node's prediction.

    Args:
        logits: `(samples, nodes, classes)`.
        judge: The node that judges, in a chain the last exit, or logits `(samples, classes)` of what is no node.

    Returns:
        Float64 `(samples, nodes)`.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
        >>> leaving_losses(logits).tolist()
        [[0.5, 0.5, 0.5]]
    """
    return 1 - _judged(logits, judge).gather(1, logits.argmax(-1))


def _judged(logits: Tensor, judge: int | Tensor) -> Tensor:
    return (judge if isinstance(judge, Tensor) else logits[:, judge]).double().softmax(-1)


def find_judge(correct: Tensor, full: int = -1) -> int:
    """The node whose probabilities judge all others: the full network's, unless one is clearly the more accurate.

    Where the full network's own head is worse than an early exit, as in a backbone whose training was cut short,
    sending samples there gains nothing that it could tell of. Clearly is, of the samples that one of the two has right
    and the other wrong, by more than two standard errors (McNemar's test).

    Args:
        correct: Which validation samples each node has right, bool `(samples, nodes)`.
        full: The full network's node, in a chain the last.

    Example:
        >>> correct = torch.tensor([[False, True, True], [False, True, False]]).repeat(50, 1)
        >>> find_judge(correct), find_judge(correct[:4])
        (1, 2)
    """
    gains = correct.long() - correct[:, full].long().unsqueeze(1)
    leads = gains.sum(0)
    clear = leads > 2 * gains.abs().sum(0).sqrt()
    if not clear.any():
        return full % len(leads)
    return len(leads) - 1 - int(leads.where(clear, -1).flip(0).argmax())


class Observed(NamedTuple):
    """What training samples say of every node.

    Attributes:
        known: What is known at each early node, `(samples, inputs)`.
        losses: Of leaving at each node, float64 `(samples, nodes)`; with recall, of the answer that is kept there.
        better: With recall, the weights and bias by which each exit's answer takes the place of the one before.
    """

    known: list[Tensor]
    losses: Tensor
    better: list[tuple[Tensor, Tensor]]


def joined(parts: Sequence[Observed]) -> Observed:
    """What several batches of samples say; for gates without recall, whose fit needs all samples at once."""
    known = [torch.cat(rows) for rows in zip(*(part.known for part in parts), strict=True)]
    return Observed(known, torch.cat([part.losses for part in parts]), [])


def check_enough(gate: StoppingGate | TreeStoppingGate, samples: int) -> None:
    """Raise a `UserError` where there are no more training samples than a gate has inputs."""
    if samples <= gate.num_inputs:
        problem = f"needs more than {gate.num_inputs} training samples for its regressions and has {samples}"
        raise UserError("policy", "stopping", f"{problem}; use --policy max_probability")


def fit_stopping(
    gate: StoppingGate | TreeStoppingGate,
    logits: Logits,
    costs: Tensor,
    tradeoffs: Sequence[float] = TRADEOFFS,
    judge: int = -1,
) -> StoppingValues:
    """Fit values to samples whose logits are all at hand: `observe`, then `fit_values`.

    Args:
        gate: What is known at a node; its weights are of no account.
        logits: Of all nodes on training samples, on the CPU, `(samples, nodes, classes)`; above `most_samples` some
            stand for all.
        costs: As for `fit_values`.
        tradeoffs: As for `fit_values`.
        judge: The node whose probabilities say what leaving elsewhere loses, see `find_judge`.

    Raises:
        UserError: The features are of another network, there are no more samples than inputs, or a lambda is no price.
    """
    tree, (samples, nodes, classes) = _tree(gate), logits.shape
    if (nodes, classes) != (len(tree.nodes), gate.num_classes) or nodes != len(costs):
        own = f"this one has {len(tree.nodes)} of {gate.num_classes} classes, and {len(costs)} costs"
        raise UserError("features", f"{nodes} exits of {classes} classes", f"are of another network; {own}")
    check_enough(gate, samples)
    chosen = take(logits, spread(samples, most_samples(gate), torch.device("cpu")))
    return fit_values(gate, observe(gate, chosen, judge), costs, tradeoffs)


def fit_values(
    gate: StoppingGate | TreeStoppingGate, observed: Observed, costs: Tensor, tradeoffs: Sequence[float] = TRADEOFFS
) -> StoppingValues:
    """Fit values by backward induction, for several prices of the cost at once.

    A node's value is what the best way on from it costs: loss of leaving somewhere plus priced cost. From the last
    early node to the first a ridge regression on what is known there predicts for each way on how much dearer it is
    than leaving; samples for which all are at least 0 leave, the others go the best way, and what they pay is their
    value for the nodes before.

    Args:
        gate: What is known at a node; its weights are of no account.
        observed: From `observe`.
        costs: Of leaving at each node as fractions of the full network's, in any unit, `(nodes,)`.
        tradeoffs: Values of lambda.

    Raises:
        UserError: There are no more samples than inputs, or a lambda is no price.
    """
    tree, (known, losses, better) = _tree(gate), observed
    samples, nodes = losses.shape
    if not tradeoffs or not all(0 <= price < float("inf") for price in tradeoffs):
        raise UserError("tradeoffs", list(tradeoffs), "must be one or more prices of at least 0")
    check_enough(gate, samples)
    leaving = losses.unsqueeze(2) + torch.tensor(list(tradeoffs), dtype=torch.float64) * costs.double().unsqueeze(1)
    values = {node: leaving[:, node] for node in range(tree.num_early, nodes)}
    gates: list[Any] = [type(gate)(**gate.arguments()).eval() for _ in tradeoffs]
    for node in reversed(range(tree.num_early)):
        ways = tree.children(node)
        found = [ridge(known[node], values[way] - leaving[:, node]) for way in ways]
        scores = torch.stack([known[node].double() @ weight + bias for weight, bias in found])
        best, way = scores.min(0)
        on = torch.stack([values.pop(way) for way in ways]).gather(0, way.unsqueeze(0)).squeeze(0)
        values[node] = torch.where(best >= 0, leaving[:, node], on)
        for number, fitted in enumerate(gates):
            rows = [(weight[:, number], bias[number]) for weight, bias in found] + better[node : node + 1]
            fitted.weight[node, : len(rows)] = torch.stack([weight for weight, _ in rows])
            fitted.bias[node] = NEVER
            fitted.bias[node, : len(rows)] = torch.stack([bias for _, bias in rows])
    return StoppingValues(tradeoffs, gates)


def ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression on standardised inputs, whose weights are given for the inputs as they are.

    Args:
        inputs: `(samples, inputs)`; one that never changes gets no weight.
        targets: Float64 `(samples, outputs)`.

    Returns:
        Float64 weights `(inputs, outputs)` and biases `(outputs,)`.

    Example:
        >>> weight, bias = ridge(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]], dtype=torch.float64))
        >>> round(weight.item(), 3), round(bias.item(), 3)
        (1.998, 1.001)
    """
    x = inputs.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-6, spread, float("inf"))
    x = (x - mean) / spread
    correlations = x.T @ x / len(x)
    correlations.diagonal().add_(RIDGE)
    weight = torch.linalg.solve(correlations, x.T @ (targets - targets.mean(0)) / len(x)) / spread.unsqueeze(1)
    return weight, targets.mean(0) - mean @ weight


def observe(gate: StoppingGate | TreeStoppingGate, logits: Tensor, judge: int | Tensor = -1) -> Observed:
    """What samples say of every node.

    Args:
        gate: What is known at a node.
        logits: Of all nodes, on the CPU, `(samples, nodes, classes)`.
        judge: As for `leaving_losses`.
    """
    losses, judged = leaving_losses(logits, judge), _judged(logits, judge)
    better = list[tuple[Tensor, Tensor]]()
    if isinstance(gate, TreeStoppingGate):
        return Observed([describe(logits[:, node]) for node in range(gate.num_gates)], losses, better)
    known, memory = torch.empty(gate.num_gates, len(logits), gate.num_inputs), gate.start(logits[:, 0])
    for exit in range(gate.num_gates):
        known[exit], memory = gate.known(logits[:, exit], memory)
        if gate.recall:
            own = losses[:, exit : exit + 1]
            kept = 1 - judged.gather(1, memory.answer.argmax(-1, keepdim=True))
            weight, bias = ridge(known[exit], kept - own)
            takes = known[exit].double() @ weight + bias >= 0
            better.append((weight.squeeze(1), bias.squeeze(0)))
            losses[:, exit : exit + 1] = torch.where(takes, own, kept)
            memory = memory._replace(answer=torch.where(takes, logits[:, exit], memory.answer))
    return Observed(list(known), losses, better)


def _tree(gate: StoppingGate | TreeStoppingGate) -> Tree:
    return gate.tree if isinstance(gate, TreeStoppingGate) else Tree.chain(gate.num_gates + 1)
