"""Options of the network that change how it learns: boosted exits and gradient rescaling."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eenet.backbones import StagedBackbone
from eenet.costs import count_macs
from eenet.gates import ConfidenceGate, UncertaintyGate
from eenet.network import EarlyExitNetwork
from eenet.objectives import fork
from eenet.policies import FixedExit, Policy, SequentialGates, Threshold
from eenet.runtime.contenders import run_static
from tests._dummies import make_network


def spread(network: EarlyExitNetwork, inputs: Tensor) -> Threshold:
    scores = network(inputs).scores
    return Threshold([scores[:, gate].quantile(0.7).item() + 1e-4 for gate in range(scores.shape[1])])


@torch.no_grad()
@pytest.mark.parametrize("exits", [[0, 2], "all"])
@pytest.mark.parametrize("kind", ["some leave", "the second exit", "none leaves", "learned gates"])
def test_boosted_routing_equals_gathering(kind: str, exits: Any, backbone: StagedBackbone) -> None:
    gate = UncertaintyGate if kind == "learned gates" else ConfidenceGate
    network = EarlyExitNetwork(backbone, exits, gate=gate, boosted=True).eval()
    inputs = torch.randn(64, *backbone.input_shape or ())
    outputs = network(inputs)
    policy: Policy = {
        "some leave": spread(network, inputs),
        "the second exit": FixedExit(1),
        "none leaves": FixedExit(),
        "learned gates": SequentialGates(),
    }[kind]
    expected = policy.exits(outputs.logits.argmax(-1), outputs.scores)
    routed = network.route(inputs, policy)
    assert routed.exits.tolist() == expected.tolist()
    torch.testing.assert_close(routed.logits, outputs.logits[torch.arange(64), expected], atol=1e-5, rtol=1e-5)
    if kind == "some leave":
        assert len(expected.unique()) == network.num_exits


@torch.no_grad()
def test_boosted_logits_are_sums_over_early_exits_and_cost_nothing() -> None:
    network = make_network(boosted=True)
    plain = make_network()
    plain.load_state_dict(network.state_dict())
    inputs = torch.randn(5, 1, 8, 8)
    alone, boosted = plain(inputs).logits, network(inputs).logits
    for exit in range(3):
        torch.testing.assert_close(boosted[:, exit], sum(alone[:, i] for i in range(exit + 1)))
    assert torch.equal(boosted[:, 3], alone[:, 3])
    assert network.costs.cumulative == plain.costs.cumulative
    head = plain.costs.heads[0]
    assert network.costs.static == [plain.costs.static[exit] + exit * head for exit in range(3)] + [plain.costs.full]
    torch.testing.assert_close(run_static(network, 2, inputs), boosted[:, 2])
    assert count_macs(run_static, network, 2, inputs)[0] == 5 * network.costs.static[2]


def test_the_loss_of_a_boosted_exit_trains_its_own_head_only() -> None:
    network = make_network(boosted=True)
    extracted = network.extract(torch.randn(3, 1, 8, 8))
    network.exit_logits(extracted)[:, 2].square().sum().backward()
    trained = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in network.heads]
    assert trained == [False, False, True]


class Chain(StagedBackbone):
    """Scalar stages `z_i = w_i z_{i-1}`; every exit's head and the backbone's own multiply by a number."""

    num_stages, num_classes, feature_dims, input_shape = 3, 1, [1, 1, 1], (1,)

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.tensor(value) for value in (2.0, 3.0, 5.0))

    def embed(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"z": inputs, "steps": torch.zeros(len(inputs), dtype=torch.long)}

    def run_stage(self, i: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"z": self.weights[i] * state["z"], "steps": state["steps"] + 1}

    def features(self, i: int, state: dict[str, Tensor]) -> Tensor:
        return state["z"]

    def classify(self, state: dict[str, Tensor]) -> Tensor:
        return state["z"]

    def description(self) -> dict[str, Any]:
        return {}


class Times(nn.Linear):
    reads = "vector"

    @staticmethod
    def run_batched(modules: Any, features: Any) -> None:
        return None


@pytest.mark.parametrize("rescaled", [False, True])
def test_gradients_of_a_chain_by_hand(rescaled: bool) -> None:
    network = EarlyExitNetwork(Chain(), inference_module=Times, gradient_rescaling=rescaled)  # type: ignore[arg-type]
    for head, factor in zip(network.inference_modules, (7.0, 11.0), strict=True):
        nn.init.constant_(head.weight, factor)
    logits = network.exit_logits(network.extract(torch.tensor([[1.0]])))
    logits.sum().backward()
    # The exits give 7 z_0, 11 z_1 and z_2, and z = 2, 6, 30. What the outputs of stages 2, 1 and 0 receive:
    early, late = (1 / 2, 1 / 2) if rescaled else (1, 1)
    to_last, to_second = 1, early * 11 + late * 5
    early, late = (1 / 3, 2 / 3) if rescaled else (1, 1)
    to_first = early * 7 + late * 3 * to_second
    expected = [to_first * 1, to_second * 2, to_last * 6]
    gradients = [weight.grad.item() for weight in network.backbone.weights]  # type: ignore[union-attr]
    assert gradients == pytest.approx(expected)
    assert [head.weight.grad.item() for head in network.inference_modules] == [2, 6]


def test_every_exit_has_an_equal_share_of_the_trunk() -> None:
    trunk = torch.ones(1, requires_grad=True)
    state, branches = trunk, []
    for exit in range(4):
        branch, state = fork(state, 5 - exit)
        branches.append(branch)
    for output in [*branches, state]:
        (gradient,) = torch.autograd.grad(output.sum(), trunk, retain_graph=True)
        assert gradient.item() == pytest.approx(1 / 5)


def test_rescaling_changes_no_value() -> None:
    network = make_network(gradient_rescaling=True)
    plain = make_network()
    plain.load_state_dict(network.state_dict())
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(network(inputs).logits, plain(inputs).logits)
