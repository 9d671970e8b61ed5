"""Connections between exits: by hand in numpy, routed as gathered, billed, fitted, exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import Tensor

from eenet.calibration.ensemble import RIDGE, fit_ensemble
from eenet.connections import Apart, Connection, Ensemble, PastFuture, ZeroTimeWaste
from eenet.costs import count_macs
from eenet.described import describe
from eenet.errors import UserError
from eenet.exporting import export_network
from eenet.gates import ConfidenceGate, ErrorGate
from eenet.network import EarlyExitNetwork
from eenet.policies import FixedExit, Patience, Policy, Threshold
from eenet.runtime import load
from eenet.runtime.contenders import run_static
from eenet.tree import Tree
from lightning_modules import JointExits, WeightedExits
from tests._dummies import make_network

CONNECTIONS: dict[str, Any] = {
    "zero time waste": ZeroTimeWaste,
    "cascade": lambda gates, classes: ZeroTimeWaste(gates, classes, ensemble=False),
    "ensemble": lambda gates, classes: ZeroTimeWaste(gates, classes, cascade=False),
    "past and future": lambda gates, classes: PastFuture(gates, classes, width=5),
}


def connected(name: str = "zero time waste", **arguments: Any) -> EarlyExitNetwork:
    """With an ensemble that is not the first one."""
    network = make_network(connection=CONNECTIONS[name], **{"gate": ConfidenceGate, **arguments})
    ensemble = getattr(network.connection, "ensemble", None)
    if ensemble is not None:
        ensemble.weight.copy_(torch.rand_like(ensemble.weight).tril() + 0.2)
        ensemble.bias.copy_(torch.randn_like(ensemble.bias))
    return network


def between(network: EarlyExitNetwork, inputs: Tensor) -> Threshold:
    scores = network(inputs).scores
    return Threshold([scores[:, gate].quantile(0.6).item() + 1e-4 for gate in range(scores.shape[1])])


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: values.double().numpy() for name, values in module.state_dict().items()}


@torch.no_grad()
def test_cascade_and_ensemble_are_what_numpy_says() -> None:
    network = connected()
    inputs = torch.randn(6, 1, 8, 8)
    extracted, w = network.extract(inputs), arrays(network)
    logs: list[np.ndarray] = []
    z = np.zeros((6, 10))
    for exit, features in enumerate(extracted.features):
        x = features.double().numpy()
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        head = w[f"inference_modules.{exit}.linear.weight"]
        layer, read = head, x
        if exit:  # one layer on what the head reads and the logits before
            layer = np.concatenate([head, w[f"connection.cascade.{exit - 1}.weight"]], axis=1)
            z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
            read = np.concatenate([x, z], axis=1)
        z = read @ layer.T + w[f"inference_modules.{exit}.linear.bias"]
        logs.append(np.log(softmax(z, axis=1)))
        powers = [np.exp(p) ** w["connection.ensemble.weight"][exit, j] for j, p in enumerate(logs)]
        product = np.exp(w["connection.ensemble.bias"][exit]) * np.prod(powers, axis=0)
        expected = product / product.sum(1, keepdims=True)
        found = network(inputs).logits[:, exit].softmax(-1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert torch.equal(network(inputs).logits[:, 3], network.backbone(inputs))


@torch.no_grad()
def test_past_and_future_are_what_numpy_says() -> None:
    connection = PastFuture(3, 4, width=5)
    own, w = torch.randn(2, 3, 5), arrays(connection)

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    states = np.maximum(own.double().numpy(), 0)
    imitated = {
        (i, j): np.maximum(layer(f"imitators.{j - 1}", states[:, i]), 0) for i in range(3) for j in range(i + 1, 3)
    }
    logits = connection(own).numpy()
    for i in range(2):
        past = sum(layer(f"reduce.{j}", states[:, j]) for j in range(i + 1))
        future = sum(layer(f"reduce.{j}", imitated[i, j]) for j in range(i + 1, 3))
        weighed = sum(layer(f"weigh.{j}", states[:, j]) for j in range(i + 1)) / (i + 1)
        share = 1 / (1 + np.exp(-layer("balance", np.maximum(weighed, 0))))
        np.testing.assert_allclose(logits[:, i], share * past + (1 - share) * future, atol=1e-5)
    np.testing.assert_allclose(logits[:, 2], sum(layer(f"reduce.{j}", states[:, j]) for j in range(3)), atol=1e-5)
    lengths = [np.linalg.norm(a, axis=1) * np.linalg.norm(states[:, j], axis=1) for (_, j), a in imitated.items()]
    dots = [(a * states[:, j]).sum(1) for (_, j), a in imitated.items()]
    expected = 1 - np.mean(np.array(dots) / np.maximum(lengths, 1e-8))
    assert connection.loss(own).item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", CONNECTIONS)
@pytest.mark.parametrize("kind", ["some leave", "the second exit", "none leaves", "two agree"])
def test_connected_routing_equals_gathering(name: str, kind: str) -> None:
    network = connected(name)
    inputs = torch.randn(48, 1, 8, 8)
    outputs = network(inputs)
    policy: Policy = {
        "some leave": between(network, inputs),
        "the second exit": FixedExit(1),
        "none leaves": FixedExit(),
        "two agree": Patience(1),
    }[kind]
    expected = policy.exits(outputs.logits.argmax(-1), outputs.scores)
    routed = network.route(inputs, policy)
    assert routed.exits.tolist() == expected.tolist()
    assert kind != "some leave" or len(expected.unique()) > 2
    torch.testing.assert_close(routed.logits, outputs.logits[torch.arange(48), expected], atol=1e-5, rtol=1e-5)
    assert routed.macs.tolist() == [network.costs.cumulative[exit] for exit in expected.tolist()]


@torch.no_grad()
def test_what_connections_compute_is_billed() -> None:
    plain, waste, future = make_network().costs, connected().costs, connected("past and future").costs
    assert isinstance(plain.heads, tuple)  # type: ignore[union-attr]
    assert waste.heads == tuple(16 * 10 + 100 * (exit > 0) + 10 * (exit + 1) for exit in range(3))  # type: ignore[union-attr]
    to_come = [2, 1, 0]
    own = [16 * 5 + 2 * 50 + n * (25 + 50) + 100 for n in to_come[:2]]
    assert future.heads == (*own, 16 * 5 + 50)  # type: ignore[union-attr]
    network, inputs = connected(), torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(run_static(network, 2, inputs), network(inputs).logits[:, 2])
    assert count_macs(run_static, network, 2, inputs)[0] == 5 * network.costs.static[2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["cascade", "past and future"])
def test_a_later_exit_trains_no_earlier_module(name: str) -> None:
    network = connected(name)
    extracted = network.extract(torch.randn(3, 1, 8, 8))
    network.exit_logits(extracted)[:, 2].square().sum().backward()
    trained = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in network.heads]
    assert trained == [False, False, True]


def test_the_ensemble_is_fitted_to_the_least_cross_entropy() -> None:
    logits, labels = torch.randn(2000, 2, 3), torch.randint(3, (2000,))
    logits[torch.arange(2000), 1, labels] += 2
    log_p = logits.log_softmax(-1)
    ensemble = Ensemble(2, 3)
    assert not ensemble.fitted
    fit_ensemble(ensemble, log_p, labels)
    assert ensemble.fitted

    def loss(v: np.ndarray) -> float:
        mixed = np.einsum("nmc,m->nc", log_p.double().numpy(), np.exp(v[:2]) / 2) + v[2:]
        return -log_softmax(mixed, axis=1)[np.arange(2000), labels].mean() + RIDGE / 2000 * (v @ v)

    best = minimize(loss, np.zeros(5), method="BFGS").x
    np.testing.assert_allclose(ensemble.weight[1], np.exp(best[:2]) / 2, atol=2e-3)
    np.testing.assert_allclose(ensemble.bias[1], best[2:], atol=2e-3)
    assert ensemble.weight[1, 1] > 2 * ensemble.weight[1, 0]
    ensemble.reset()
    assert not ensemble.fitted


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["zero time waste", "past and future"])
def test_connected_exits_are_exported_bit_for_bit(name: str, tmp_path: Path) -> None:
    network, inputs = connected(name), torch.randn(24, 1, 8, 8)
    policy = between(network, inputs)
    export_network(network, policy, tmp_path / "out", inputs[:3])
    routed, expected = load(tmp_path / "out")(inputs), network.route(inputs, policy)
    assert torch.equal(routed.logits, expected.logits)
    assert torch.equal(routed.exits, expected.exits)
    assert torch.equal(routed.macs, expected.macs)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["zero time waste", "past and future"])
def test_connected_exits_route_in_one_onnx_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, inputs = connected(name), torch.randn(24, 1, 8, 8)
    policy = between(network, inputs)
    export_network(network, policy, tmp_path / "out", inputs[:3], format="onnx")
    routed, expected = load(tmp_path / "out")(inputs), network.route(inputs, policy)
    assert torch.equal(routed.exits, expected.exits)
    torch.testing.assert_close(routed.logits, expected.logits, atol=1e-4, rtol=0)


def test_what_cannot_be_connected_is_refused() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        make_network(boosted=True, connection=ZeroTimeWaste)
    with pytest.raises(UserError, match="is for exits without a connection"):
        make_network(connection=ZeroTimeWaste, gate=lambda gates: ErrorGate(Tree.chain(4), [16] * 3, 10))
    with pytest.raises(UserError, match=r"cascade = False"):
        ZeroTimeWaste(3, 10, cascade=False, ensemble=False)
    with pytest.raises(UserError, match=r"width = 0"):
        PastFuture(3, 10, width=0)
    with pytest.raises(UserError, match="imitation"):
        PastFuture(3, 10, imitation=-1.0)
    for make in (lambda: JointExits(make_network(connection=PastFuture)), lambda: WeightedExits(connected())):
        with pytest.raises(UserError, match=r"is trained by lightning_modules\.DecoupledExits"):
            make()
    with pytest.raises(UserError, match="of another network"):
        fit_ensemble(Ensemble(2, 3), torch.zeros(4, 3, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(UserError, match="are not finite"):
        fit_ensemble(Ensemble(2, 3), torch.full((4, 2, 3), torch.nan), torch.zeros(4, dtype=torch.long))


def test_a_connection_is_written_as_it_was_made(tmp_path: Path) -> None:
    made = describe(make_network(connection=lambda gates, classes: PastFuture(gates, classes, width=5)))["init_args"]
    assert made["connection"] == {
        "class_path": "eenet.connections.past_future.PastFuture",
        "init_args": {"width": 5},
    }
    assert "connection" not in describe(make_network())["init_args"]
    assert isinstance(make_network().connection, Apart)
    network, inputs = connected(), torch.randn(3, 1, 8, 8)
    network.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(EarlyExitNetwork.from_pretrained(tmp_path / "saved")(inputs).logits, network(inputs).logits)
    assert issubclass(Apart, Connection)


@pytest.mark.parametrize("how", [{"boosted": True}, {"connection": ZeroTimeWaste}, {"connection": PastFuture}])
@torch.no_grad()
def test_a_saved_network_is_read_and_saved_again_with_its_connection(how: dict[str, Any], tmp_path: Path) -> None:
    network, inputs = make_network(gate=ConfidenceGate, **how), torch.randn(3, 1, 8, 8)
    for value in network.connection.state_dict().values():
        value.uniform_()
    expected = network(inputs).logits
    for folder in (tmp_path / "first", tmp_path / "second"):
        network.save_pretrained(folder)
        network = type(network).from_pretrained(folder).eval()
        assert torch.equal(network(inputs).logits, expected)
