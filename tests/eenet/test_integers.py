"""int8 arithmetic in one ONNX file that routes: the same exits alone and in any batch, as the standard computes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones import Bert
from eenet.backbones.proofs import varied
from eenet.errors import UserError
from eenet.exporting import export_network
from eenet.exporting.contenders import full_network
from eenet.exporting.folder import choose_exits
from eenet.exporting.integers import AllExits, Integers, IntegerSteps
from eenet.gates import ConfidenceGate, StoppingGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold
from eenet.runtime import RoutedOnnx, load
from tests._dummies import make_network, make_resnet, make_vit
from tests.eenet.test_export import digits
from tests.eenet.test_routed_onnx import BERT, WORDS, between_scores, branch_of, pairs

onnx = pytest.importorskip("onnx")
for _package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(_package)

Made = tuple[EarlyExitNetwork, Threshold, IntegerSteps, RoutedOnnx]


class Keeping(Integers):
    """Keeps the steps that it has made."""

    def convert(self, steps: Sequence[Any]) -> IntegerSteps:
        self.made = super().convert(steps)
        return self.made


def make_int8(network: EarlyExitNetwork, inputs: Any, example: Any, folder: Path) -> Made:
    """A network, thresholds near the medians of its scores, its int8 steps, and the file that routes by them."""
    policy, integers = between_scores(network, inputs), Keeping(inputs, folder / "ranges.json")
    export_network(network, policy, folder / "out", example, "onnx", one=True, integers=integers)
    runtime = load(folder / "out")
    assert isinstance(runtime, RoutedOnnx)
    return network, policy, integers.made, runtime


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    network = EarlyExitNetwork(make_resnet(), exits=[1], gate=ConfidenceGate).eval()
    return make_int8(network, digits()[:100], digits()[:3], tmp_path_factory.mktemp("int8"))


def routes_alike(made: Made, inputs: Any) -> None:
    """Alone and in batches samples leave where all int8 steps as one graph, run by itself, let them."""
    network, policy, steps, runtime = made
    exits, logits = choose_exits(network, policy, AllExits(steps.whole)(inputs))
    assert len(exits.unique()) >= 2
    samples = len(exits)
    for batch in (1, 2, 33, samples):
        rows = range(0, samples, batch)
        found = [runtime(pytree.tree_map(lambda leaf, at=at: leaf[at : at + batch], inputs)) for at in rows]  # noqa: B023
        assert torch.cat([routed.exits for routed in found]).tolist() == exits.tolist()
        torch.testing.assert_close(torch.cat([routed.logits for routed in found]), logits, atol=1e-5, rtol=1e-4)


def test_samples_leave_alone_where_they_leave_in_any_batch(resnet: Made) -> None:
    routes_alike(resnet, digits()[:99])


def test_the_arithmetic_is_that_of_the_standard(resnet: Made) -> None:
    _, _, made, _ = resnet
    evaluator, inputs = onnx.reference.ReferenceEvaluator(made.whole), digits()[100:104]
    expected = torch.stack([torch.from_numpy(exit) for exit in evaluator.run(None, {"input_0": inputs.numpy()})], 1)
    found, plain = AllExits(made.whole)(inputs), AllExits(made.plain)(inputs)
    rounding = (found - plain).abs().mean()
    assert (found - expected).abs().mean() < 0.2 * rounding  # a code may be rounded the other way
    assert 0 < rounding < 0.5 * plain.abs().mean()


def test_weights_are_codes_in_their_branches_and_maps_are_handed_on_as_codes(resnet: Made, tmp_path: Path) -> None:
    network, _, made, runtime = resnet
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
    assert (made.layers, made.left) == (convolutions, ())
    assert [step.graph.output[0].type.tensor_type.elem_type for step in made.steps[:-1]] == [2]
    model = onnx.load(Path(runtime.source) / "model.onnx")
    graphs = [model.graph, *(branch_of(node, "then_branch") for node in model.graph.node if node.op_type == "If")]
    for graph in graphs:
        assert {w.data_type for w in graph.initializer if len(w.dims) == 4} == {onnx.TensorProto.INT8}


def test_rows_that_are_not_finite_are_marked_and_an_empty_batch_is_answered(resnet: Made) -> None:
    *_, runtime = resnet
    inputs = digits()[:9].clone()
    expected = runtime.run(inputs)["exit"]
    inputs[0], inputs[4, 0, 2, 2], inputs[5, 0, 7, 7] = float("nan"), float("inf"), float("nan")
    for rows in (inputs, inputs[:1]):
        found = runtime.run(rows)
        assert found["exit"].tolist() == [-1 if row in (0, 4, 5) else expected[row].item() for row in range(len(rows))]
    assert found["logits"].isnan().all()
    assert runtime.run(inputs[:0])["logits"].shape == (0, 10)


def test_texts_are_taken_by_their_keys_whatever_the_order_of_the_data() -> None:
    """Tokenizers put `token_type_ids` before the mask, where an example has them behind it, or not at all."""
    torch.manual_seed(0)
    network = EarlyExitNetwork(Bert(4, overrides=BERT | WORDS, pooling="mean")).eval()
    ids = torch.randint(1, 9, (4, 6))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [6], [2]])).long()
    run = full_network(network, varied(network.backbone.example_input())).run
    given = {"input_ids": ids, "token_type_ids": torch.randint(0, 2, ids.shape), "attention_mask": mask}
    single = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        for inputs in (given, single):
            torch.testing.assert_close(run(inputs), network.backbone(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "bert"])
def test_transformers_leave_alone_where_they_leave_in_any_batch(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs: Any = digits()[:66]
    example: Any = inputs[:3]
    network = make_network(exits=[0, 2], gate=ConfidenceGate)
    if family == "bert":
        network = EarlyExitNetwork(Bert(4, overrides=BERT | WORDS, pooling="mean"), gate=ConfidenceGate).eval()
        inputs = pairs(66)
        example = varied(network.backbone.example_input())
    made = make_int8(network, inputs, example, tmp_path)
    routes_alike(made, inputs)
    assert made[2].left == ()


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (digits()[:1], "at least 2 samples"),
        (digits()[:0], "at least 2 samples"),
        (torch.zeros(5, 1, 8, 8), "all of them are the same"),
        (digits()[:1].repeat(4, 1, 1, 1), "all of them are the same"),
        (torch.cat([digits()[:2], torch.full((1, 1, 8, 8), torch.nan)]), "no finite number"),
    ],
)
def test_calibrating_inputs_that_give_no_ranges_are_refused(inputs: Tensor, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        Integers(inputs, tmp_path / "ranges.json")


def test_what_has_no_int8_form_is_refused(tmp_path: Path) -> None:
    from tests.eenet.quantization.test_quantized_network import make_network as make_tree

    integers = Integers(digits()[:9], tmp_path / "ranges.json")
    network = make_network(exits=[0, 2], gate=ConfidenceGate)
    recalling = network.with_gate(StoppingGate(2, 10, recall=True))
    one = make_tree(make_vit(depth=3), exits=[0, 1], widths=[8])
    for refused, format, problem in (
        (network, "torch", "not for torch"),
        (recalling, "onnx", "take stopping"),
        (one, "onnx", "quantized already"),
    ):
        policy = Threshold([0.5] * 2)
        with pytest.raises(UserError, match=problem):
            export_network(refused, policy, tmp_path / "out", digits()[:3], format, integers=integers)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
