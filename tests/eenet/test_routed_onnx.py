"""One ONNX file that routes: the same exits as the network for any batch, and nothing else is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones import Bert, Gpt
from eenet.backbones.proofs import varied
from eenet.calibration.conformal import prediction_sets
from eenet.errors import UserError
from eenet.exporting import Description, export_network
from eenet.exporting.fast_gates import with_fast_gates
from eenet.exporting.routed_onnx import SetRule
from eenet.gates import ConfidenceGate, UncertaintyGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Patience, Policy, SequentialGates, Threshold
from eenet.runtime import RoutedOnnx, load
from tests._dummies import make_network, make_resnet, make_vit
from tests.eenet.test_export import digits, set_digests

onnx = pytest.importorskip("onnx")
for _package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(_package)

QUANTILES = torch.tensor([0.86, 0.9, 0.88])
TEMPERATURES = [0.5, 2.0, 1.25]


@torch.no_grad()
def between_scores(network: EarlyExitNetwork, inputs: Any) -> Threshold:
    """Thresholds in the widest gap between two scores near each exit's median, where rounding decides nothing."""
    scores = network(inputs).scores.double().sort(0).values
    middle = scores[len(scores) // 3 : 2 * len(scores) // 3]
    widest = middle.diff(dim=0).argmax(0)
    return Threshold([middle[row : row + 2, exit].mean().item() for exit, row in enumerate(widest.tolist())])


def branch_of(node: Any, name: str) -> Any:
    return next(attribute.g for attribute in node.attribute if attribute.name == name)


@pytest.fixture(scope="module")
def network() -> EarlyExitNetwork:
    torch.manual_seed(0)
    return EarlyExitNetwork(make_vit(depth=3), exits=[0, 1], gate=ConfidenceGate).eval()


@pytest.fixture(scope="module")
def policy(network: EarlyExitNetwork) -> Threshold:
    return between_scores(network, digits())


@pytest.fixture(scope="module")
def exported(network: EarlyExitNetwork, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routed") / "onnx"
    sets = {"set_per_exit_0.1": SetRule(TEMPERATURES, QUANTILES.numpy())}
    export_network(network, policy, folder, digits()[:3], "onnx", Description(sets=sets), one=True)
    return folder


def same(runtime: Any, network: EarlyExitNetwork, policy: Policy, inputs: Any, batch: int) -> Tensor:
    """The exits of all inputs, in batches, which have to be those of the network with its logits and costs."""
    samples, exits = len(pytree.tree_leaves(inputs)[0]), []
    for first in range(0, samples, batch):
        rows = pytree.tree_map(lambda leaf, first=first: leaf[first : first + batch], inputs)
        expected, found = network.route(rows, policy), runtime(rows)
        assert found.exits.tolist() == expected.exits.tolist()
        assert found.macs.tolist() == expected.macs.tolist()
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
        exits.append(found.exits)
    return torch.cat(exits)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_every_digit_leaves_where_the_network_lets_it(
    network: EarlyExitNetwork, policy: Policy, exported: Path, batch: int
) -> None:
    exits = same(load(exported), network, policy, digits()[: 40 if batch == 1 else 400], batch)
    assert len(exits.unique()) == 3


def test_the_file_is_one_and_holds_its_weights(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["model.json", "model.onnx", "model_one.onnx"]
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model)
    branches = [branch_of(node, "then_branch") for node in model.graph.node if node.op_type == "If"]
    assert len(branches) == 2
    assert all(any(len(weight.dims) == 2 for weight in branch.initializer) for branch in branches)
    assert str(Path.cwd()).encode() not in (exported / "model.onnx").read_bytes()


def test_rows_that_are_not_numbers_are_marked_and_others_go_on_as_before(
    network: EarlyExitNetwork, policy: Policy, exported: Path
) -> None:
    inputs, runtime = digits()[:9].clone(), load(exported)
    expected = network.route(inputs, policy)
    inputs[0], inputs[4, 0, 2, 2] = float("nan"), float("nan")
    found = runtime.run(inputs)
    others = [1, 2, 3, 5, 6, 7, 8]
    assert found["exit"][[0, 4]].tolist() == [-1, -1]
    assert found["cost"][[0, 4]].tolist() == [network.costs.columns["macs"].routed[-1]] * 2
    assert found["exit"][others].tolist() == expected.exits[others].tolist()
    torch.testing.assert_close(found["logits"][others], expected.logits[others], atol=1e-5, rtol=1e-4)
    assert runtime(inputs[:1]).exits.tolist() == network.route(inputs[:1], policy).exits.tolist() == [2]


def test_an_empty_batch_is_answered(exported: Path) -> None:
    found = load(exported).run(digits()[:0])
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "logits": (0, 10),
        "exit": (0,),
        "cost": (0,),
        "set_per_exit_0.1": (0, 10),
    }


def test_conformal_sets_are_those_of_the_library(exported: Path) -> None:
    found = load(exported).run(digits()[:200])
    temperatures = torch.tensor(TEMPERATURES)[found["exit"]]
    probabilities = (found["logits"] / temperatures[:, None]).softmax(-1)
    expected = prediction_sets(probabilities, found["exit"], QUANTILES)
    assert torch.equal(found["set_per_exit_0.1"], expected)
    assert 0 < expected.sum() < expected.numel()


@pytest.mark.parametrize(
    "inputs", [torch.zeros(2, 3, 8, 8), torch.zeros(1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.float64), {"x": 1}]
)
def test_other_inputs_are_refused(exported: Path, inputs: Any) -> None:
    with pytest.raises(UserError, match="inputs"):
        load(exported)(inputs)


def loop(graph: Any) -> None:
    graph.node[-1].op_type = "Loop"


def within(graph: Any) -> None:
    outer = next(node for node in graph.node if node.op_type == "If")
    branch_of(outer, "then_branch").node.append(outer)


def more(graph: Any) -> None:
    graph.node.append(next(node for node in graph.node if node.op_type == "If"))


def renamed(graph: Any) -> None:
    graph.output[1].name = "logits"


def busy(graph: Any) -> None:
    outer = next(node for node in graph.node if node.op_type == "If")
    branch_of(outer, "then_branch").node.append(branch_of(outer, "else_branch").node[0])


@pytest.mark.parametrize(
    ("name", "harm", "problem"),
    [
        ("model.onnx", loop, "asks for Loop"),
        ("model.onnx", within, "branches within branches"),
        ("model.onnx", more, "has 3 branches where 2 exits follow"),
        ("model_one.onnx", more, "has 2 branches in one graph"),
        ("model_one.onnx", busy, "computes where a sample has left"),
        ("model.onnx", renamed, ""),
    ],
)
def test_control_flow_that_no_export_has_is_refused(
    exported: Path, tmp_path: Path, name: str, harm: Callable[[Any], None], problem: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = onnx.load(folder / name)
    harm(model.graph)
    (folder / name).write_bytes(model.SerializeToString())
    set_digests(folder)
    with pytest.raises(UserError, match=rf"{name[:-5]}\.onnx.*{problem}"):
        load(folder)


def test_a_changed_file_is_refused(exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() + b" " * (path.suffix == ".onnx"))
    with pytest.raises(UserError, match=r"model\.onnx.*is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_of_other_costs_is_refused(exported: Path, tmp_path: Path, batch: int) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "model_one.onnx" if batch == 1 else "model.onnx"
    model = onnx.load(tmp_path / name)
    table = next(node.input[0] for node in model.graph.node if "cost" in node.output)
    costs = next(weight for weight in model.graph.initializer if weight.name == table)
    costs.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(costs) + 1, table))
    (tmp_path / name).write_bytes(model.SerializeToString())
    set_digests(tmp_path)
    with pytest.raises(UserError, match="does not cost what its manifest says"):
        load(tmp_path)(digits()[:batch])


@torch.no_grad()
def test_fast_gates_decide_as_the_gates_they_stand_for() -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(500, 10)
    network = make_network(exits=[1], gate=UncertaintyGate)
    fast, policy = with_fast_gates(network, SequentialGates(0.2))
    torch.testing.assert_close(fast.gate.at(0, logits)[0], network.gate.at(0, logits)[0], atol=1e-5, rtol=1e-5)
    assert policy.arguments() == {"shift": 0.2, "clip": True}
    network = make_network(exits=[1], gate=ConfidenceGate)
    for limit in (-1.0, 0.0, 0.4, 0.77, 1.0, 1.5, float("inf")):
        fast, policy = with_fast_gates(network, Threshold([limit]))
        rows = torch.cat([logits, torch.full((1, 10), float("nan"))])
        (found,), (expected,) = (
            [decider.decide(0, rows, made.gate.at(0, rows)[0], ())[0]]
            for made, decider in ((fast, policy), (network, Threshold([limit])))
        )
        assert found[:-1].tolist() == expected[:-1].tolist() or limit == 1.0
        assert not found[-1]


def texts(samples: int, longest: int = 12) -> dict[str, Tensor]:
    lengths = torch.randint(1, longest + 1, (samples,))
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, 30, mask.shape) * mask, "attention_mask": mask}


def pairs(samples: int) -> dict[str, Tensor]:
    found = texts(samples)
    return {**found, "token_type_ids": torch.randint(0, 2, found["input_ids"].shape)}


BERT = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 3}
GPT = {"n_embd": 8, "n_head": 2, "n_layer": 3, "n_positions": 64, "pad_token_id": 0}
WORDS = {"vocab_size": 30, "initializer_range": 0.3}
FAMILIES: dict[str, Callable[[], EarlyExitNetwork]] = {
    "resnet": lambda: EarlyExitNetwork(make_resnet(), exits=[0, 2], gate=ConfidenceGate),
    "bert": lambda: EarlyExitNetwork(Bert(4, overrides=BERT | WORDS, pooling="mean"), gate=ConfidenceGate),
    "gpt": lambda: EarlyExitNetwork(Gpt(4, overrides=GPT | WORDS), gate=ConfidenceGate),
    "jei_dnn": lambda: make_network(exits=[0, 2]),
    "patience": lambda: make_network(exits=[0, 1, 2]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_and_policy_leaves_where_the_network_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = FAMILIES[name]().eval()
    inputs: Any = {"bert": pairs, "gpt": texts}.get(name, lambda rows: digits()[:rows])(66)
    policy: Policy = Patience(1) if name == "patience" else between_scores(network, inputs)
    if name == "jei_dnn":
        with torch.no_grad():
            policy = SequentialGates(-between_scores(network, inputs).arguments()["thresholds"][0])
    if name == "gpt":  # as if it were larger than ONNX's format can hold
        monkeypatch.setattr("eenet.exporting.folder.LARGEST_INSIDE", 0)
    example = inputs[:3] if isinstance(inputs, Tensor) else varied(network.backbone.example_input())
    export_network(network, policy, tmp_path / "out", example, "onnx", one=True)
    runtime = load(tmp_path / "out")
    assert isinstance(runtime, RoutedOnnx)
    for batch in (1, 2, 33):
        exits = same(runtime, network, policy, inputs, batch)
    assert len(exits.unique()) >= 2
    assert len(runtime.run(pytree.tree_map(lambda rows: rows[:0], inputs))["exit"]) == 0
    assert (tmp_path / "out" / "weights.safetensors").exists() == (name == "gpt")


def test_a_tree_that_branches_stays_steps() -> None:
    from tests.eenet.quantization.test_quantized_network import make_network as make_tree

    network = make_tree(make_vit(depth=3), exits=[0, 1], widths=[8, 4])
    with pytest.raises(UserError, match="onnx-steps"):
        export_network(network, network.policy(8, 0.3), Path("nowhere"), torch.zeros(3, 1, 8, 8), "onnx")
    with pytest.raises(UserError, match="no file for a batch of one"):
        export_network(make_network(), Threshold([0.5] * 3), Path("nowhere"), digits()[:3], "torch", one=True)
