"""Networks, policies and calibration on a device of their own: whatever stays on the CPU is found without a GPU."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.api.outputs import rows_of
from eenet.calibration import OperatingPoint, fit_temperatures, trust, trust_records
from eenet.calibration.conformal import conformal_quantiles
from eenet.calibration.logits import read_exits
from eenet.calibration.scheduler import fit_schedule
from eenet.calibration.search import Scored, policy_for_accuracy, policy_for_budget
from eenet.decoding import Executor, LayerPlan, RoutedExecutor, Rules, generate, pad_left
from eenet.gates import ConfidenceGate, Gate, SchedulerGate, StoppingGate, TreeStoppingGate, UncertaintyGate
from eenet.metrics import sample_statistics, summarise
from eenet.network import EarlyExitNetwork
from eenet.objectives import (
    SelfDistillation,
    WeightNetwork,
    assign_exits,
    assigned_loss,
    balanced_weights,
    best_exits,
    exit_weighted_loss,
    gate_loss,
    gate_targets,
    geometric_shares,
    positive_weights,
)
from eenet.policies import (
    BestWay,
    ClassThresholds,
    FixedExit,
    Patience,
    Policy,
    RandomExits,
    SequentialGates,
    Threshold,
    exit_distribution,
)
from eenet.quantization import QuantizedNetwork
from eenet.reporting import evaluate
from eenet.runtime import EarlyExitRuntime
from eenet.runtime.contenders import routed_network
from tests._dummies import make_network, make_resnet, make_vit
from tests._dummies.decoders import LAYERS, TEXTS
from tests._dummies.device import CUDA, TRAINING, Elsewhere, Machine, MixedDevices
from tests.eenet.backbones.test_families import CASES, Case
from tests.eenet.backbones.test_traced import Net, traced
from tests.eenet.decoding.test_routed import make_network as make_decoder_network
from tests.eenet.decoding.test_routed import make_policy

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FAMILIES: dict[str, Case] = {
    "vit": Case(make_vit, IMAGES),
    "resnet": Case(make_resnet, IMAGES),
    "traced": Case(lambda: traced(Net(10)), IMAGES),
    **{name: CASES[name] for name in ("distilbert", "llama-classification", "mobilenetv3", "cifar-20")},
}


def there(tree: Any, device: torch.device = CUDA) -> Any:
    return pytree.tree_map_only(Tensor, lambda rows: rows.to(device), tree)


def same(found: Any, expected: Any) -> None:
    """The same numbers, and all of them on the device."""
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        if isinstance(other, Tensor):
            assert one.device == CUDA
            torch.testing.assert_close(one.cpu(), other, atol=1e-4, rtol=1e-4)


class Careless(nn.Module):
    """Keeps a table where modules that move do not find it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(3)

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.table


MISTAKES: dict[str, Callable[[Tensor], Any]] = {
    "a table that is no buffer": lambda rows: Careless().to(CUDA)(rows),
    "a new tensor": lambda rows: rows + torch.arange(3),
    "joined": lambda rows: torch.cat([rows, torch.zeros(3)]),
    "an index": lambda rows: torch.ones(3)[rows.long()],
    "gathered": lambda rows: rows.gather(0, torch.tensor([1])),
    "a number among others": lambda rows: torch.stack([rows.sum(), torch.tensor(1.0)]),
    "written to": lambda rows: torch.zeros(()).add_(rows.sum()),
    "a generator": lambda rows: torch.rand(3, device=rows.device, generator=torch.Generator()),
    "numpy": lambda rows: rows.numpy(),
    "another's gradient": lambda rows: torch.nn.functional.linear(rows, torch.ones(2, 3)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_device_refuses_what_a_gpu_refuses(name: str) -> None:
    with pytest.raises((MixedDevices, RuntimeError, TypeError)), Machine():
        MISTAKES[name](torch.ones(3, device=CUDA))


def test_the_device_takes_what_a_gpu_takes() -> None:
    with Machine():
        rows = torch.tensor([1.0, 2.0, 3.0], device=CUDA)
        assert (rows * torch.tensor(2.0) + 1)[torch.tensor([2, 0])].tolist() == [7.0, 3.0]
        rows[rows > 1] = torch.tensor(0.0)
        assert (rows.tolist(), rows.nonzero().tolist(), rows.sum().item()) == ([1.0, 0.0, 0.0], [[0]], 1.0)
        assert isinstance(rows, Elsewhere)
        assert rows.cpu().numpy().sum() == 1


def test_a_refusal_that_is_caught_is_found() -> None:
    with pytest.raises(MixedDevices), Machine(), pytest.raises(RuntimeError):
        _ = torch.ones(3, device=CUDA) + torch.ones(3)


def test_a_device_without_float64_says_so() -> None:
    with pytest.raises(TypeError), Machine(doubles=False):
        torch.ones(3, device=CUDA).double()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_families_run_where_they_are(name: str) -> None:
    torch.manual_seed(0)
    network, inputs = EarlyExitNetwork(FAMILIES[name].make(), [0, 1]).eval(), FAMILIES[name].inputs
    expected = network(inputs)
    policy = SequentialGates(-expected.scores.median().item() + 1e-3)
    routed = network.route(inputs, policy)
    with Machine():
        network.to(CUDA)
        if name == "vit":
            network.__dict__.pop("costs")
        same(network(there(inputs)), expected)
        same(network.route(there(inputs), policy), routed)


POLICIES: dict[str, tuple[Policy, Callable[[int], Gate]]] = {
    "threshold": (Threshold([0.13] * 3), ConfidenceGate),
    "margin": (Threshold([0.02] * 3), partial(ConfidenceGate, measure="margin")),
    "entropy": (Threshold([-2.2] * 3), partial(ConfidenceGate, measure="entropy")),
    "fixed": (FixedExit(1), ConfidenceGate),
    "patience": (Patience(1), ConfidenceGate),
    "random": (RandomExits([0.0, 0.0, 1.0, 0.0]), ConfidenceGate),
    "gates": (SequentialGates(), UncertaintyGate),
    "per_class": (ClassThresholds(0.1, [0.01 * i for i in range(10)]), ConfidenceGate),
    "scheduler": (Threshold([0.0] * 3), lambda gates: SchedulerGate(gates, 10)),
    "stopping": (Threshold([0.0] * 3), lambda gates: StoppingGate(gates, 10, recall=True)),
}


@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_policies_decide_where_the_scores_are(name: str) -> None:
    torch.manual_seed(0)
    policy, gate = copy.deepcopy(POLICIES[name])
    network = make_network(gate=gate, boosted=name == "scheduler")
    logits, scores = network(IMAGES)
    routed, exits = network.route(IMAGES, policy), policy.exits(logits.argmax(-1), scores)
    doubles = name in ("per_class", "random")  # which are kept, and compared, in float64
    with Machine(doubles):
        network.to(CUDA)
        found = EarlyExitRuntime(network, policy)(there(IMAGES))
        same(found, routed)
        one, other = (rows_of(each, None, torch.ones(4), network.tree) for each in (found, routed))
        assert [row["label"] for row in one] == [row["label"] for row in other]
        assert routed_network("", network, policy).mean_costs([there(IMAGES)])["macs"] == routed.macs.double().mean()
        same(network.route(there(IMAGES[:1]), policy).logits, routed.logits[:1])
        moved = there((logits.argmax(-1), scores))
        same(policy.exits(*moved), exits)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ("fixed", "random")])
@torch.no_grad()
def test_knobs_lie_where_the_scores_are(name: str) -> None:
    torch.manual_seed(0)
    policy, gate = copy.deepcopy(POLICIES[name])
    logits = torch.randn(5, 4, 10)
    predictions, scores = logits.argmax(-1), gate(3)(logits[:, :-1])
    departures = policy.departures(predictions, scores, policy.knobs(scores))
    with Machine():
        moved = there((predictions, scores))
        knobs = policy.knobs(moved[1])
        assert knobs.device == CUDA
        same(policy.departures(*moved, knobs), departures)


@pytest.fixture(scope="module")
def branching() -> QuantizedNetwork:
    torch.manual_seed(0)
    network = QuantizedNetwork(make_vit(depth=2), [0], widths=[32, 4]).eval()
    network.calibrate([IMAGES])
    return network


@contextmanager
def autocast() -> Iterator[None]:
    """That of CUDA, whose lists of operators are not the CPU's; torch's own context asks for a driver."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("name", ["vit", "resnet", "llama-classification", "tree"])
@torch.no_grad()
def test_types_agree_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    network: EarlyExitNetwork
    if name == "tree":
        network, inputs = QuantizedNetwork(make_vit(depth=3), [0, 1], widths=[32, 4]).eval(), IMAGES
        network.calibrate([IMAGES])
    else:
        network, inputs = EarlyExitNetwork(FAMILIES[name].make(), [0, 1], boosted=True).eval(), FAMILIES[name].inputs
    with Machine(), autocast():
        logits, scores = network.to(CUDA)(there(inputs))
        routed = network.route(there(inputs), network.policy(32, 0.0) if name == "tree" else SequentialGates())
        assert routed.logits.dtype == torch.bfloat16
        assert logits.dtype in (torch.bfloat16, torch.float32)
        assert scores.isfinite().any()


@pytest.mark.parametrize("way", ["errors", "best", "path"])
@torch.no_grad()
def test_paths_of_several_widths(way: str, branching: QuantizedNetwork) -> None:
    tree = branching.tree
    network, policy = branching, branching.policy(32, 0.0)
    if way == "best":
        network, policy = network.with_gate(TreeStoppingGate(tree.nodes, 10)), BestWay(32, 0.5, tree.nodes)
    elif way == "path":
        network, policy = network.along(tree.full[1], ConfidenceGate(1)), Threshold([0.13])
    logits, scores = network(IMAGES)
    routed, nodes = network.route(IMAGES, policy), policy.exits(logits.argmax(-1), scores)
    with Machine():
        network.to(CUDA)
        same(network.route(there(IMAGES), policy), routed)
        same(policy.exits(*there((logits.argmax(-1), scores))), nodes)
        policy.knobs(there(scores))
        network.to("cpu")


@torch.no_grad()
def test_tokens_leave_where_they_are() -> None:
    network, prompts = make_decoder_network(), pad_left(TEXTS)
    policy = make_policy("max_probability", network)
    policy = Threshold([threshold + 1e-3 for threshold in policy.arguments()["thresholds"]])
    rules = Rules.sampled(1.0, 0.9)
    routed = network.route(prompts, policy)
    text = generate(RoutedExecutor(network, policy), prompts, 4).tokens
    drawn = generate(RoutedExecutor(network, policy, "recompute"), prompts, 3, rules=rules).tokens
    planned = generate(Executor(network.backbone, LayerPlan((0, 2), LAYERS)), prompts, 3).tokens
    with Machine(doubles=False):
        network.to(CUDA)
        same(network.route(there(prompts), policy), routed)
        assert generate(RoutedExecutor(network, policy), prompts, 4).tokens == text
        assert generate(RoutedExecutor(network, policy, "recompute"), prompts, 3, rules=rules).tokens == drawn
        assert generate(Executor(network.backbone, LayerPlan((0, 2), LAYERS)), there(prompts), 3).tokens == planned


def objectives(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """What each way of training steps on."""
    exits, fractions = logits.shape[1], torch.tensor([0.3, 0.6, 1.0], device=logits.device)
    scores = UncertaintyGate(exits - 1).to(logits.device)(logits[:, :-1])
    best = best_exits(logits, labels, fractions, 0.1, "prob_if_right")
    targets = gate_targets(best, exits - 1)
    shares = exit_distribution(scores)
    weights = WeightNetwork(exits, exits - 1, 4).to(logits.device)(logits[..., 0])
    classes = balanced_weights(labels, 10)
    return [
        gate_loss(scores, targets, positive_weights(targets.sum(0), len(labels)), rarer=True),
        exit_weighted_loss(logits, labels, shares, class_weights=classes),
        SelfDistillation().loss(logits, labels, logits[:, -1], classes),
        assigned_loss(logits, labels, assign_exits(logits.amax(-1), geometric_shares(exits, 0.7))) + weights.mean(),
    ]


def test_objectives_and_their_gradients() -> None:
    logits, labels = torch.randn(20, 3, 10), torch.arange(20) % 10
    torch.manual_seed(0)
    expected = torch.stack(objectives(logits, labels)).tolist()
    with Machine(doubles=False):
        torch.manual_seed(0)
        moved = logits.to(TRAINING).requires_grad_()
        losses = torch.stack(objectives(moved, labels.to(TRAINING)))
        losses.sum().backward()
        assert losses.tolist() == pytest.approx(expected, abs=1e-5)
        assert moved.grad is not None
        assert moved.grad.device == TRAINING


@torch.no_grad()
def test_calibration_and_figures() -> None:
    torch.manual_seed(0)
    network, labels = make_network(), torch.arange(300) % 10
    logits = torch.randn(300, 4, 10) + 3 * torch.nn.functional.one_hot(labels, 10).unsqueeze(1) * torch.rand(300, 4, 1)
    network.gate = ConfidenceGate(3)
    costs = network.costs
    with Machine():
        there_logits, there_labels = there((logits, labels), TRAINING)
        known = read_exits(there_logits, there_labels, network.gate)
        correct = known.predictions == there_labels.unsqueeze(1)
        scored = Scored(known.predictions, known.scores, correct, costs.fractions().to(TRAINING))
        policy = policy_for_budget(Threshold([0.0] * 3), scored, 0.6)
        policy_for_accuracy(Patience(1), scored, 50.0)
        fit_schedule(scored, 0.8, steps=2)
        temperatures = fit_temperatures(there_logits, there_labels).values
        assert temperatures.tolist() == pytest.approx(fit_temperatures(logits, labels).values.tolist())
        exits = policy.exits(known.predictions, known.scores)
        quantiles = {
            (mode, 0.1): conformal_quantiles(known.true_scores, exits, 0.1, mode, "textbook", there_labels, 10)
            for mode in ("common", "per_exit", "per_class")
        }
        point = OperatingPoint(policy, conformal=quantiles)  # type: ignore[arg-type]
        rows = trust_records(point, temperatures, there_logits[:, 0], exits, there_labels)
        trust(point, **rows, exits=exits, labels=there_labels, num_exits=4)
        statistics = sample_statistics(there_logits, there_labels)
        assert summarise(statistics[:, 0]) == summarise(sample_statistics(logits, labels)[:, 0])
        evaluate(statistics, known.predictions, known.scores, {"point": policy}, costs)
