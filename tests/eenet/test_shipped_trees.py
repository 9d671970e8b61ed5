"""Networks whose tree branches, deployed: exported, compiled, in the queue, and timed against static ones."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.exporting import export_network
from eenet.policies import PredictedErrors, Threshold
from eenet.quantization import QuantizedNetwork
from eenet.runtime import EarlyExitRuntime, ExportedRuntime, load, route
from eenet.runtime.contenders import full_network, nobody_leaves, run_static, static_networks
from tests._dummies import Layers, make_vit
from tests.eenet.quantization.test_quantized_network import sharpen
from tests.eenet.test_export import digits

IMAGES = 300


@pytest.fixture(
    scope="module",
    params=[Layers, pytest.param(lambda: make_vit(depth=2), marks=pytest.mark.slow)],
    ids=["layers", "transformer"],
)
def network(request: pytest.FixtureRequest) -> QuantizedNetwork:
    """Two segments at two widths, with ranges of the digits and predictors that send them everywhere."""
    torch.manual_seed(0)
    network = QuantizedNetwork(request.param(), [0], widths=[8, 4]).eval()
    network.calibrate([digits()[:256]])
    sharpen(network, digits()[:256])
    return network


@pytest.fixture(scope="module")
def policy(network: QuantizedNetwork) -> PredictedErrors:
    return network.policy(8, 0.3)


@pytest.fixture(scope="module")
def exported(network: QuantizedNetwork, policy: PredictedErrors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "torch"
    export_network(network, policy, folder, digits()[:3])
    return folder


@pytest.mark.parametrize("batch", [1, 64])
def test_an_exported_tree_gives_the_nodes_of_the_network_bit_for_bit(
    network: QuantizedNetwork, policy: PredictedErrors, exported: Path, batch: int
) -> None:
    runtime, nodes = load(exported), []
    for inputs in digits()[: IMAGES if batch > 1 else 60].split(batch):
        expected, routed = network.route(inputs, policy), runtime(inputs)
        for found, wanted in zip(routed, expected, strict=True):
            assert torch.equal(found, wanted)  # type: ignore[arg-type]
        nodes.append(routed.nodes)
    assert len(torch.cat(nodes).unique()) == 3


@pytest.mark.slow
def test_onnx_gives_the_nodes_of_the_network(
    network: QuantizedNetwork, policy: PredictedErrors, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    export_network(network, policy, tmp_path / "onnx", digits()[:3], "onnx-steps")
    runtime = load(tmp_path / "onnx")
    for batch in (1, 64):
        for inputs in digits()[:IMAGES].split(batch):
            expected, routed = network.route(inputs, policy), runtime(inputs)
            assert torch.equal(routed.nodes, expected.nodes)
            assert torch.equal(routed.bitops, expected.bitops)  # type: ignore[arg-type]
            torch.testing.assert_close(routed.logits, expected.logits, atol=1e-4, rtol=0)


def test_the_folder_holds_the_tree_and_a_program_for_each_place_that_is_reached(
    network: QuantizedNetwork, policy: PredictedErrors, exported: Path
) -> None:
    manifest = load(exported).manifest
    assert manifest.tree == network.tree
    assert manifest.costs == network.costs
    assert network.tree.nodes[manifest.first_node] == (8,)
    names = ["exit_0_8bit", "exit_1_8bit", "exit_1_4bit"]
    assert sorted(path.stem for path in exported.glob("exit_*.json")) == sorted(names)


class Wandering:
    """A program that sends everybody to one node."""

    source = "exit_0_8bit.json"

    def __init__(self, node: int) -> None:
        self.node = node

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        (inputs,) = tensors
        after = torch.full((len(inputs),), self.node)
        return [inputs, after, after, torch.zeros(len(inputs), 10), after]


@pytest.mark.parametrize("node", [-1, 1, 10**9])
def test_a_program_that_sends_samples_elsewhere_is_refused(exported: Path, node: int) -> None:
    manifest = load(exported).manifest
    runtime = ExportedRuntime(manifest, dict.fromkeys(manifest.programs, Wandering(node)), [torch.empty(0)])
    with pytest.raises(UserError, match=r"exit_0_8bit\.json.*a node that does not follow"):
        runtime(digits()[:2])


@pytest.mark.slow
def test_a_chain_along_a_path_is_exported_with_its_bitops(network: QuantizedNetwork, tmp_path: Path) -> None:
    chain, inputs = network.along((8, 4)), digits()[:IMAGES]
    with torch.no_grad():
        policy = Threshold(chain(inputs).scores.median(0).values.tolist())
    export_network(chain, policy, tmp_path / "out", inputs[:3])
    expected, routed = chain.route(inputs, policy), load(tmp_path / "out")(inputs)
    assert len(expected.nodes.unique()) == 2
    for found, wanted in zip(routed, expected, strict=True):
        assert torch.equal(found, wanted)  # type: ignore[arg-type]


@pytest.mark.slow
@torch.no_grad()
def test_compiled_steps_of_a_tree_route_as_the_network_does(
    network: QuantizedNetwork, policy: PredictedErrors, interpreted: list[str]
) -> None:
    runtime = EarlyExitRuntime(network, policy, compile=True)
    assert interpreted == ["exit_0_8bit", "exit_1_8bit", "exit_1_4bit"]
    for batch in (1, 33):
        expected, routed = route(network, digits()[:batch], policy), runtime(digits()[:batch])
        assert routed.nodes.tolist() == expected.nodes.tolist()
        torch.testing.assert_close(routed.logits, expected.logits)
    assert runtime.warm_up(digits()[:2]) > 0


@torch.no_grad()
def test_static_networks_of_a_tree_are_its_uniform_paths(network: QuantizedNetwork) -> None:
    inputs = digits()[:20]
    logits, tree, column = network(inputs).logits, network.tree, network.costs.columns["bitops"]
    torch.testing.assert_close(full_network(network).run(inputs), network.backbone(inputs))
    contenders = static_networks(network)
    assert [one.name for one in contenders] == ["8 bits", "4 bits"]
    for one, width in zip(contenders, (8, 4), strict=True):
        node = tree.index[(width,) * 2]
        torch.testing.assert_close(one.run(inputs), logits[:, node])
        assert one.costs == {"macs": network.costs.full, "bitops": column.static[node]}
    torch.testing.assert_close(run_static(network, tree.index[(8, 4)], inputs), logits[:, tree.index[(8, 4)]])
    everybody = nobody_leaves(network)
    routed = everybody.run(inputs)
    assert {tree.nodes[node] for node in routed.nodes.tolist()} == {(8, 8)}
    assert everybody.costs == {"macs": routed.macs[0].item(), "bitops": routed.bitops[0].item()}


def test_a_policy_for_another_network_is_not_deployed(network: QuantizedNetwork) -> None:
    with pytest.raises(UserError, match="policy = 'Threshold'"):
        EarlyExitRuntime(network, Threshold([0.5]))
