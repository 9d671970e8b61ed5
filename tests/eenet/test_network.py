import pytest
import torch

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.gates import ConfidenceGate, SchedulerGate
from eenet.inference_modules import ConvPoolHead, LinearHead, MLPHead, run_inference_modules
from eenet.network import EarlyExitNetwork
from eenet.policies import FixedExit, Patience, Policy, RandomExits, SequentialGates, Threshold
from tests._dummies import make_network, make_resnet, make_vit


def spread_threshold(network: EarlyExitNetwork, inputs: torch.Tensor) -> Threshold:
    """A policy under which some samples leave at every exit."""
    scores = network(inputs).scores
    return Threshold([scores[:, gate].quantile(0.7).item() + 1e-4 for gate in range(scores.shape[1])])


@pytest.mark.parametrize("batch", [1, 7, 256])
@pytest.mark.parametrize(
    "kind", ["some leave", "all at the first", "none leaves", "learned gates", "patience", "random"]
)
@torch.no_grad()
def test_routed_logits_equal_the_gathered_ones(kind: str, batch: int, backbone: StagedBackbone) -> None:
    network = EarlyExitNetwork(backbone).eval()
    inputs = torch.randn(batch, *backbone.input_shape or ())
    policy: Policy = {
        "some leave": spread_threshold(network, inputs),
        "all at the first": FixedExit(0),
        "none leaves": FixedExit(),
        "learned gates": SequentialGates(),
        "patience": Patience(),
        "random": RandomExits([1 / network.num_exits] * network.num_exits),
    }[kind]
    outputs = network(inputs)
    torch.manual_seed(1)
    expected = policy.exits(outputs.logits.argmax(-1), outputs.scores)
    torch.manual_seed(1)
    routed = network.route(inputs, policy)
    assert routed.exits.tolist() == expected.tolist()
    torch.testing.assert_close(routed.logits, outputs.logits[torch.arange(batch), expected], atol=1e-5, rtol=1e-5)
    assert routed.macs.tolist() == [network.costs.cumulative[exit] for exit in expected]
    if kind == "some leave" and batch == 256:
        assert len(expected.unique()) == network.num_exits


@torch.no_grad()
def test_a_gate_with_memory_routes_as_it_gathers() -> None:
    plain = make_network()
    network = plain.with_gate(SchedulerGate(3, 10)).eval()
    inputs = torch.randn(64, 1, 8, 8)
    policy = spread_threshold(network, inputs)
    outputs = network(inputs)
    expected = policy.exits(outputs.logits.argmax(-1), outputs.scores)
    assert len(expected.unique()) == 4
    assert network.route(inputs, policy).exits.tolist() == expected.tolist()
    hidden = [16 * (10 + 3 + exit) + 16 for exit in range(3)]
    assert list(network.costs.gates) == hidden
    assert plain.costs.gates != network.costs.gates
    assert network.backbone is plain.backbone


@torch.no_grad()
def test_stages_after_the_last_departure_are_not_run() -> None:
    network = make_network()
    assert network.costs.num_exits == 4
    seen: list[int] = []
    run_stage = network.backbone.run_stage

    def counting(i: int, state: torch.Tensor) -> torch.Tensor:
        seen.append(len(state))
        return run_stage(i, state)

    network.backbone.run_stage = counting  # type: ignore[method-assign]
    network.route(torch.randn(5, 1, 8, 8), FixedExit(1))
    assert seen == [5, 5]
    seen.clear()
    inputs = torch.randn(64, 1, 8, 8)
    policy = spread_threshold(network, inputs)
    seen.clear()
    exits = network.route(inputs, policy).exits
    assert seen == [int((exits >= stage).sum()) for stage in range(4)]


@torch.no_grad()
def test_a_network_without_early_exits_routes_to_its_own_head() -> None:
    network = make_network(exits=[])
    inputs = torch.randn(3, 1, 8, 8)
    assert network.costs.cumulative == [network.costs.full]
    torch.testing.assert_close(network.route(inputs, FixedExit()).logits, network.backbone(inputs))


@torch.no_grad()
@pytest.mark.parametrize("exits", [[0], [1, 2], "all"])
def test_from_features_gives_what_forward_gives(exits: list[int] | str, backbone: StagedBackbone) -> None:
    network = EarlyExitNetwork(backbone, exits).eval()  # type: ignore[arg-type]
    inputs = torch.randn(4, *backbone.input_shape or ())
    extracted = network.extract(inputs)
    assert [rows.shape for rows in extracted.features] == [
        (4, backbone.feature_dims[stage]) for stage in network.exit_stages
    ]
    torch.testing.assert_close(network.from_features(extracted), network(inputs))
    torch.testing.assert_close(network(inputs).logits[:, -1], backbone(inputs))


@torch.no_grad()
def test_heads_of_equal_width_are_batched_and_agree_with_one_by_one() -> None:
    heads = [LinearHead(16, 10) for _ in range(3)]
    features = [torch.randn(5, 16) for _ in range(3)]
    batched = LinearHead.run_batched(heads, features)
    assert batched is not None
    torch.testing.assert_close(batched, torch.stack([h(f) for h, f in zip(heads, features, strict=True)], dim=1))
    mixed = [LinearHead(16, 10), LinearHead(8, 10)]
    assert LinearHead.run_batched(mixed, [features[0], features[1][:, :8]]) is None
    assert run_inference_modules(mixed, [features[0], features[1][:, :8]]).shape == (5, 2, 10)


@torch.no_grad()
@pytest.mark.parametrize("head", [LinearHead, MLPHead, ConvPoolHead])
def test_every_head_on_both_families(head: type, backbone: StagedBackbone) -> None:
    network = EarlyExitNetwork(backbone, inference_module=head).eval()
    assert network(torch.randn(2, *backbone.input_shape or ())).logits.shape == (2, network.num_exits, 10)


def test_gradients_of_gates_do_not_reach_the_heads() -> None:
    network = make_network()
    network(torch.randn(2, 1, 8, 8)).scores.sum().backward()
    assert all(parameter.grad is None for parameter in network.inference_modules.parameters())
    assert all(parameter.grad is not None for parameter in network.gate.parameters())


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ([3], "0 to 2"),
        ([-1], "0 to 2"),
        ([7], "0 to 2"),
        ([2, 1], r"increasing, such as \[1, 2\]"),
        ([1, 1], r"increasing, such as \[1\]"),
        (["x"], "list of stage numbers"),
        ("some", "`all` or a list"),
    ],
)
def test_exits_that_are_not_there_are_refused(exits: list[int], message: str) -> None:
    with pytest.raises(UserError, match=rf"network\.exits = .*{message}"):
        EarlyExitNetwork(make_vit(), exits)


def test_a_map_head_needs_a_family_with_maps() -> None:
    backbone = make_resnet()
    backbone.map_dims = None
    with pytest.raises(UserError, match=r"ConvPoolHead.* reads feature maps"):
        EarlyExitNetwork(backbone, inference_module=ConvPoolHead)


def test_an_unknown_confidence_measure_is_refused() -> None:
    with pytest.raises(UserError, match=r"gate\.measure = 'guess'"):
        ConfidenceGate(3, "guess")  # type: ignore[arg-type]
