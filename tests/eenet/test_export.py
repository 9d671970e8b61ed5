import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor

from eenet.backbones import Bert, CifarResNet, EfficientNetLite0, StagedBackbone
from eenet.backbones.proofs import varied
from eenet.errors import UserError
from eenet.exporting import Description, export_network
from eenet.gates import ConfidenceGate, SchedulerGate
from eenet.inference_modules import ConvPoolHead, MLPHead
from eenet.network import EarlyExitNetwork
from eenet.policies import FixedExit, Patience, Policy, RandomExits, SequentialGates, Threshold
from eenet.quantization import QuantizedBackbone
from eenet.runtime import ALWAYS, load
from eenet.runtime.manifest import MANIFEST, WEIGHTS, Format, manifest_digest, sha256
from tests._dummies import Layers, make_network, make_resnet, make_vit


def digits() -> Tensor:
    pixels = torch.from_numpy(load_digits().images.astype(np.float32))[:, None]
    return (pixels - 16 * 0.3053) / (16 * 0.3760)


def between_scores(network: EarlyExitNetwork, inputs: Tensor) -> Threshold:
    """Thresholds half-way between two neighbouring scores near each exit's median, so that some leave everywhere."""
    with torch.no_grad():
        scores = network(inputs).scores.double().sort(dim=0).values
    places = range(len(scores) // 3, 2 * len(scores) // 3)
    widest = [max(places, key=lambda row, exit=exit: scores[row + 1, exit] - scores[row, exit]) for exit in range(3)]
    return Threshold([scores[row : row + 2, exit].mean().item() for exit, row in enumerate(widest)])


@pytest.fixture(scope="module")
def network() -> EarlyExitNetwork:
    torch.manual_seed(0)
    return make_network()


@pytest.fixture(scope="module")
def policy(network: EarlyExitNetwork) -> Threshold:
    return between_scores(network, digits())


@pytest.fixture(scope="module")
def exported(network: EarlyExitNetwork, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "torch"
    labels = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    export_network(network, policy, folder, digits()[:3], "torch", Description(labels, {"name": "between"}))
    return folder


@pytest.fixture(scope="module")
def exported_onnx(network: EarlyExitNetwork, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_network(network, policy, folder, digits()[:3], "onnx-steps")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 64, 1797])
def test_the_digits_are_routed_bit_for_bit(
    network: EarlyExitNetwork, policy: Policy, exported: Path, batch: int
) -> None:
    runtime = load(exported)
    for inputs in digits()[: max(batch, 20)].split(batch):
        expected, routed = network.route(inputs, policy), runtime(inputs)
        assert torch.equal(routed.exits, expected.exits)
        assert torch.equal(routed.logits, expected.logits)
        assert torch.equal(routed.macs, expected.macs)
    assert batch < 64 or len(expected.exits.unique()) == network.num_exits


@pytest.mark.slow
def test_onnx_decides_alike_on_the_digits(network: EarlyExitNetwork, policy: Policy, exported_onnx: Path) -> None:
    inputs, runtime = digits(), load(exported_onnx)
    expected, routed = network.route(inputs, policy), runtime(inputs)
    assert torch.equal(routed.exits, expected.exits)
    assert torch.equal(routed.macs, expected.macs)
    torch.testing.assert_close(routed.logits, expected.logits, atol=1e-4, rtol=0)
    one = runtime(inputs[:1])
    torch.testing.assert_close(one.logits, expected.logits[:1], atol=1e-4, rtol=0)
    assert not list(exported_onnx.glob("*.data"))
    assert (exported_onnx / WEIGHTS).stat().st_size > sum(p.stat().st_size for p in exported_onnx.glob("*.onnx")) / 20


def calibrated() -> QuantizedBackbone:
    backbone = QuantizedBackbone(make_vit(), 4)
    backbone.calibrate([torch.randn(16, 1, 8, 8)])
    return backbone


VARIANTS: dict[str, tuple[Callable[[], StagedBackbone], dict[str, Any], Policy]] = {
    "resnet": (make_resnet, {}, SequentialGates(0.1)),
    "cifar_resnet": (lambda: CifarResNet(8, 10, 8, 1), {}, FixedExit(1)),
    "efficientnet": (lambda: EfficientNetLite0(10, 32), {"exits": [2, 9]}, SequentialGates()),
    "scheduler": (
        make_vit,
        {"exits": [0, 2], "gate": lambda n: SchedulerGate(n, 10), "inference_module": MLPHead, "boosted": True},
        Threshold([0.0] * 2),
    ),
    "margin": (
        make_vit,
        {"exits": [1], "gate": lambda n: ConfidenceGate(n, "margin"), "inference_module": ConvPoolHead},
        Threshold([0.03]),
    ),
    "patience": (lambda: make_vit(depth=3), {"exits": [0, 1]}, Patience(1)),
    "quantized": (calibrated, {"exits": [1]}, SequentialGates()),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n != "patience" else n for n in VARIANTS],
)
def test_every_part_is_exported_bit_for_bit(name: str, tmp_path: Path) -> None:
    make, arguments, policy = VARIANTS[name]
    network = EarlyExitNetwork(make(), **arguments).eval()
    assert network.backbone.input_shape is not None
    inputs = torch.randn(40, *network.backbone.input_shape)
    export_network(network, policy, tmp_path / "out", inputs[:3])
    runtime, expected = load(tmp_path / "out"), network.route(inputs, policy)
    routed = runtime(inputs)
    assert torch.equal(routed.logits, expected.logits)
    assert torch.equal(routed.exits, expected.exits)
    assert torch.equal(routed.macs, expected.macs)


def pairs(*lengths: int) -> dict[str, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids, types = torch.randint(1, 30, mask.shape) * mask, torch.randint(0, 2, mask.shape) * mask
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2}
SIZES_DISTIL = {"dim": 8, "n_heads": 2, "hidden_dim": 16, "n_layers": 2}


def make_texts(family: Literal["bert", "distilbert"] = "bert") -> EarlyExitNetwork:
    pytest.importorskip("transformers")
    sizes = SIZES if family == "bert" else SIZES_DISTIL
    bert = Bert(4, family=family, overrides=sizes | {"vocab_size": 30, "initializer_range": 0.3}, pooling="mean")
    return EarlyExitNetwork(bert).eval()


def test_texts_of_any_length_are_routed_alike(tmp_path: Path) -> None:
    network = make_texts()
    export_network(network, SequentialGates(-0.1), tmp_path / "out", varied(network.backbone.example_input()))
    runtime = load(tmp_path / "out")
    assert [(spec.name, spec.dtype, spec.shape) for spec in runtime.manifest.inputs] == [
        ("input_ids", "int64", (None,)),
        ("attention_mask", "int64", (None,)),
        ("token_type_ids", "int64", (None,)),
    ]
    for lengths in ([1], [12], [3, 9, 1, 4, 2, 7, 7, 5], [2, 2, 2]):
        inputs = pairs(*lengths)
        expected, routed = network.route(inputs, SequentialGates(-0.1)), runtime(inputs)
        assert torch.equal(routed.exits, expected.exits)
        torch.testing.assert_close(routed.logits, expected.logits, atol=1e-5, rtol=1e-5)
    known = pairs(3, 2)
    single = {**known, "token_type_ids": torch.zeros(2, 3, dtype=torch.long)}
    del known["token_type_ids"]
    assert torch.equal(runtime(known).logits, runtime(single).logits)
    for wrong, problem in (
        ({"input_ids": known["input_ids"]}, r"inputs = .*'input_ids'.*must be a dict of attention_mask, input_ids"),
        ({**known, None: 1}, "inputs = .*'None', 'attention_mask'.*must be a dict"),
        (
            {**known, "attention_mask": [[1, 1, 1], [1, 1, 0]]},
            "_mask = 'list': must be a tensor of int64",
        ),
        ({**known, "attention_mask": known["attention_mask"][:1]}, r"inputs.attention_mask = .*1, 3.*must have 2 rows"),
    ):
        with pytest.raises(UserError, match=problem):
            runtime(wrong)


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_folder_without_token_types_takes_those_of_single_texts(format: Format, tmp_path: Path) -> None:
    """As of DistilBERT, and as BERT was exported before examples had them."""
    network = make_texts("distilbert")
    export_network(network, SequentialGates(-0.1), tmp_path / "out", varied(network.backbone.example_input()), format)
    runtime, texts = load(tmp_path / "out"), pairs(4, 6, 2)
    assert [spec.name for spec in runtime.manifest.inputs] == ["input_ids", "attention_mask"]
    with pytest.raises(UserError, match=r"^inputs\.token_type_ids = 'not all 0'.*export the run again$"):
        runtime(texts)
    texts["token_type_ids"].zero_()
    expected, routed = network.route(texts, SequentialGates(-0.1)), runtime(texts)
    assert torch.equal(routed.exits, expected.exits)
    torch.testing.assert_close(routed.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_the_folder_says_what_it_is(network: EarlyExitNetwork, policy: Policy, exported: Path) -> None:
    manifest = load(exported).manifest
    assert manifest.costs == network.costs
    assert manifest.labels is not None
    assert manifest.labels[3] == "three"
    assert manifest.backbone == network.backbone.description()
    assert manifest.policy == {"class": "Threshold", "arguments": policy.arguments()}
    assert manifest.point == {"name": "between"}
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs] == [(None, "float32", (1, 8, 8))]
    assert sorted(path.name for path in exported.iterdir()) == sorted([MANIFEST, *manifest.files])
    state = network.state_dict()
    saved = load_file(exported / WEIGHTS)
    shared = saved.keys() & state.keys()
    assert len(shared) > 30
    assert all(torch.equal(saved[name], state[name]) for name in shared)


WITHOUT = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError(f"{{name}} is refused")
sys.meta_path.insert(0, Refused())
import torch
from eenet.runtime import load
torch.set_num_threads(1)
routed = load({folder!r})(torch.load({inputs!r}, weights_only=True))
assert not set({names}) & set(sys.modules), set({names}) & set(sys.modules)
torch.save([routed.logits, routed.exits], {output!r})
"""


@pytest.mark.slow
def test_neither_lightning_nor_timm_nor_the_data_modules_are_needed(
    network: EarlyExitNetwork, policy: Policy, exported: Path, tmp_path: Path
) -> None:
    inputs = digits()[:64]
    torch.save(inputs, tmp_path / "inputs.pt")
    names = ("lightning", "lightning_modules", "datamodules", "timm", "torchvision", "transformers")
    paths = {"inputs": str(tmp_path / "inputs.pt"), "output": str(tmp_path / "output.pt"), "folder": str(exported)}
    subprocess.run([sys.executable, "-c", WITHOUT.format(names=names, **paths)], check=True)
    logits, exits = torch.load(tmp_path / "output.pt", weights_only=True)
    expected = network.route(inputs, policy)
    assert torch.equal(exits, expected.exits)
    assert torch.equal(logits, expected.logits)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 9),
        torch.zeros(1, 8, 8),
        torch.zeros(0, 1, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.float64),
        {"input_ids": torch.zeros(2, 1, 8, 8)},
    ],
)
def test_other_inputs_are_refused(exported: Path, inputs: Any) -> None:
    with pytest.raises(UserError, match="inputs"):
        load(exported)(inputs)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def rewrite(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file as an attacker would, who sets the digests right."""
    values = json.loads((folder / name).read_text())
    values = change(values) or values
    if name == MANIFEST and isinstance(values, dict):
        values["digest"] = manifest_digest(values)
    (folder / name).write_text(json.dumps(values))
    if name != MANIFEST:
        rewrite(folder, MANIFEST, lambda manifest: manifest["files"].update({name: sha256(folder / name)}))


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, "exit_2.json"])
@pytest.mark.parametrize("harm", ["missing", "damaged", "linked"])
def test_a_damaged_folder_is_refused(copy: Path, tmp_path: Path, name: str, harm: str) -> None:
    path = copy / name
    content = path.read_bytes()
    path.unlink()
    if harm == "damaged":
        path.write_bytes(content[:-9] + b"x" * 9)
    elif harm == "linked":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load(copy)


def update(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda _: [1],
        update("version", value=4),
        update("tree", value=[[32], [32, 32]]),
        update("tree", value=[[32], [8, 32]]),
        update("tree", value=[[32], [32, 32], [32, 32, 32], [32, 32, 32, 0]]),
        update("tree", value=[[32]] * 10**4),
        update("tree", value="much"),
        update("first_node", value=1),
        update("first_node", value=4),
        update("first_node", value=-1),
        update("costs", "stage_bitops", value=[1]),
        update("costs", value={"nodes": [[32]], "stages": [1], "macs": {}, "bitops": {}}),
        update("version", value=1),
        update("format", value="pickle"),
        update("files", "../../etc/passwd", value="0" * 64),
        update("files", value={"../../etc/passwd": "0" * 64}),
        update("files", value=[]),
        update("num_classes", value=-10),
        update("num_classes", value=10**30),
        update("num_classes", value=True),
        update("labels", value=["one"]),
        update("costs", "stages", value=[1, -2, 3, 4]),
        update("costs", "stages", value=[10**18] * 10**4),
        update("costs", "embed", value=0.5),
        update("costs", "exit_stages", value=[2, 1, 0]),
        update("costs", "exit_stages", value=[0, 1, 9]),
        update("costs", "exit_stages", value=[0]),
        update("costs", "uncounted", value=[1]),
        update("costs", "boosted", value={"value": 0}),
        update("costs", value={"embed": 1}),
        update("costs", value="much"),
        update("inputs", value=[]),
        update("inputs", 0, "shape", value=[1, -8, 8]),
        update("inputs", 0, "shape", value=8),
        update("inputs", 0, "dtype", value="object"),
        update("inputs", 0, value=None),
        update("backbone", value=None),
    ],
)
def test_a_hostile_description_is_refused(copy: Path, change: Callable[[Any], Any]) -> None:
    rewrite(copy, MANIFEST, change)
    with pytest.raises(UserError, match=r"model\.json"):
        load(copy)


@pytest.mark.parametrize("name", [MANIFEST, "exit_0.json"])
def test_an_oversized_file_is_not_read(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eenet.runtime.manifest.LARGEST_JSON", (copy / name).stat().st_size - 1)
    with pytest.raises(UserError, match=r"\.json.*is larger than"):
        load(copy)


def operation(*values: Any) -> Callable[[Any], None]:
    return lambda program: program["operations"].insert(0, list(values))


@pytest.mark.parametrize(
    "change",
    [
        operation("aten.from_file.default", ["stolen", True, 10], {}),
        operation("aten.add_.Tensor", [{"value": 0}, 1], {}),
        operation("aten.empty.memory_format", [[4]], {}),
        operation("aten.as_strided.default", [{"value": 0}, [10**6], [1]], {}),
        operation("prims.device_put.default", [{"value": 0}], {}),
        operation("torch.load", ["file"], {}),
        operation("os.system", ["touch owned"], {}),
        operation("python.eval", ["1"], {}),
        operation("aten.__class__.default", [], {}),
        operation(["aten.add.Tensor"], [], {}),
        operation("aten.relu.default", [{"value": 10**9}], {}),
        operation("aten.relu.default", [{"value": -1}], {}),
        operation("aten.relu.default", [{"value": "0"}], {}),
        operation("aten.relu.default", [{"dtype": "__class__"}], {}),
        operation("aten.relu.default", [{"callable": "os.system"}], {}),
        operation("aten.relu.default", [10**30], {}),
        operation("aten.relu.default", 7, {}),
        operation("aten.relu.default"),
        update("weights", 0, value="nowhere"),
        update("inputs", value=-1),
        update("inputs", value=10**30),
        update("outputs", value={"value": 0}),
        lambda _: 3,
    ],
)
def test_a_program_may_only_compute(copy: Path, change: Callable[[Any], Any]) -> None:
    rewrite(copy, "exit_0.json", change)
    with pytest.raises(UserError, match=r"exit_0\.json"):
        load(copy)


@pytest.mark.parametrize(
    "change",
    [
        operation("aten.relu.default", [], {}),
        operation("python.mul", [{"value": 0}, 10**9], {}),
        operation("aten.view.default", [{"value": 0}, [10**15]], {}),
        update("outputs", value=[]),
        update("outputs", value=[3, 4, 5]),
        update("inputs", value=0),
    ],
)
def test_a_program_that_cannot_run_is_one_clear_error(copy: Path, change: Callable[[Any], Any]) -> None:
    rewrite(copy, "exit_0.json", change)
    with pytest.raises(UserError, match=r"exit_0\.json"):
        load(copy)(digits()[:2])


def test_weights_must_be_safetensors(copy: Path) -> None:
    torch.save({"a": torch.zeros(1)}, copy / WEIGHTS)
    rewrite(copy, MANIFEST, lambda manifest: manifest["files"].update({WEIGHTS: sha256(copy / WEIGHTS)}))
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load(copy)


def test_a_folder_of_the_first_version_is_to_be_exported_again(copy: Path) -> None:
    rewrite(copy, MANIFEST, update("version", value=1))
    with pytest.raises(UserError, match=r"model\.json.*is of version 1, not 3; export the run again"):
        load(copy)


def set_digests(folder: Path) -> None:
    rewrite(folder, MANIFEST, lambda m: m["files"].update({name: sha256(folder / name) for name in m["files"]}))


@pytest.fixture(scope="module")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of two exits."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("small") / "onnx"
    network = EarlyExitNetwork(Layers(), [0]).eval()
    export_network(network, SequentialGates(), folder, digits()[:3], "onnx-steps")
    return folder


@pytest.mark.parametrize("harm", ["domain", "location", "function", "rubbish", "input"])
def test_a_hostile_onnx_file_is_refused(small_onnx: Path, tmp_path: Path, harm: str) -> None:
    import onnx

    folder = tmp_path / "copy"
    folder.mkdir()
    for path in small_onnx.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "exit_1.onnx"
    model = onnx.load(path, load_external_data=False)
    if harm == "domain":
        model.graph.node[0].domain = "com.hostile"
    elif harm == "location":
        entry = next(entry for tensor in model.graph.initializer for entry in tensor.external_data)
        entry.value = "../../etc/passwd"
    elif harm == "function":
        model.functions.add(name="f", domain="")
    elif harm == "input":
        model.graph.input[0].name = "elsewhere"
        for node in model.graph.node:
            node.input[:] = ["elsewhere" if name == "input_0" else name for name in node.input]
    path.write_bytes(b"rubbish" if harm == "rubbish" else model.SerializeToString())
    set_digests(folder)
    with pytest.raises(UserError, match=r"exit_1\.onnx"):
        load(folder)


def test_nothing_is_overwritten_and_nothing_half_written_stays(network: EarlyExitNetwork, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export_network(network, SequentialGates(), tmp_path / "out", digits()[:3])
    with pytest.raises(UserError, match="RandomExits"):
        export_network(network, RandomExits([0.25] * 4), tmp_path / "other", digits()[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_operation_that_is_not_allowed_is_refused_when_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eenet.exporting.torch_program.OPERATORS", frozenset({"aten.linear.default"}))
    with pytest.raises(UserError, match=r"needs aten.*, which exported programs may not use"):
        export_network(EarlyExitNetwork(Layers(), []), FixedExit(), tmp_path / "out", digits()[:3])
    assert not list(tmp_path.iterdir())


class Peeking(FixedExit):
    """Depends on values, which no graph can."""

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:
        return scores > 0 if scores.sum().item() > 0 else scores < 0, memory


def test_a_step_that_looks_at_values_is_refused(network: EarlyExitNetwork, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exit_0 cannot be traced"):
        export_network(network, Peeking(), tmp_path / "out", digits()[:3])


def test_compaction_is_the_callers(network: EarlyExitNetwork, policy: Policy, exported: Path) -> None:
    inputs = digits()[:200]
    routed = load(exported)(inputs, ALWAYS)
    assert torch.equal(routed.exits, network.route(inputs, policy).exits)


def test_changed_costs_are_refused(copy: Path) -> None:
    values = json.loads((copy / MANIFEST).read_text())
    values["costs"]["embed"] += 1
    (copy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"model\.json.*digest"):
        load(copy)


def test_work_that_does_not_follow_from_the_inputs_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["aten.zeros.default", [[1_000_000]], {}]
    rewrite(copy, "exit_0.json", lambda content: content["operations"].append(more))
    load(copy)
    monkeypatch.setattr("eenet.runtime.program.LARGEST_RESULT", 1_000)
    with pytest.raises(UserError, match=r"exit_0\.json.*zeros.*asks for more"):
        load(copy)


@pytest.mark.parametrize("sizes", [["python.floordiv", [1, 0]], ["python.mul", [2**40, 2**40]]])
def test_sizes_that_are_none_are_refused_in_one_line(copy: Path, sizes: list[Any]) -> None:
    rewrite(copy, "exit_0.json", lambda content: content["operations"].append([*sizes, {}]))
    with pytest.raises(UserError, match=r"exit_0\.json.*cannot be run") as refused:
        load(copy)(digits()[:2])
    assert "\n" not in str(refused.value)


def test_control_flow_in_onnx_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from eenet.runtime.onnx_program import check

    make = onnx.helper
    value = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    one = make.make_node("Constant", [], ["y"], value_float=1.0)
    branch = make.make_graph([one], "branch", [], [value])
    asked = make.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    node = make.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    onnx.save(make.make_model(make.make_graph([node], "step", [asked], [value])), tmp_path / "step.onnx")
    with pytest.raises(UserError, match="asks for If"):
        check(tmp_path / "step.onnx")
