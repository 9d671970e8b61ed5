"""Steps without what they read: the same code where only weights and thresholds differ, and the same results."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eenet.errors import UserError
from eenet.exporting.torch_program import encode
from eenet.gates import UncertaintyGate
from eenet.inference_modules import LinearHead
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold
from eenet.runtime.ahead import code_folder, compile_traced, example_batch
from eenet.runtime.codes import Code, code_of
from eenet.runtime.trace import Traced, trace, trace_function
from tests._dummies import make_vit


@pytest.fixture(scope="module")
def network() -> EarlyExitNetwork:
    torch.manual_seed(0)
    return EarlyExitNetwork(make_vit(depth=4), [0, 1, 2], gate=UncertaintyGate).eval()


@pytest.fixture(scope="module")
def steps(network: EarlyExitNetwork) -> dict[int, Traced]:
    return dict(islice(trace(network, Threshold([0.1, 0.2, 0.3]), example_batch(network)), 3))  # all but the last


def test_steps_that_differ_in_weights_and_thresholds_have_one_key(steps: dict[int, Traced]) -> None:
    keys = [code_of(step).key(step) for step in steps.values()]
    assert keys[0] != keys[1] == keys[2]


@torch.no_grad()
def test_the_code_of_one_step_computes_another_from_what_that_reads(steps: dict[int, Traced]) -> None:
    code, other = code_of(steps[1]), code_of(steps[2])
    for name, tensor in other.named().items():
        setattr(code.module, name, tensor)
    state = torch.randn(5, *steps[2].tensors[0].shape[1:])
    expected = steps[2].program.module()(state)
    for found, wanted in zip(code.module(state), expected, strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(expected[1], steps[1].program.module()(state)[1])


@torch.no_grad()
def test_parts_of_weights_stay_in_the_networks_memory(network: EarlyExitNetwork, steps: dict[int, Traced]) -> None:
    held = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    *weights, limit = code_of(steps[1]).reads
    assert all(weight.untyped_storage().data_ptr() in held for weight in weights)
    assert limit.item() == torch.tensor(0.2).item()


@pytest.mark.parametrize("change", ["threads", "width", "autocast"])
def test_another_machine_or_shape_is_another_code(
    steps: dict[int, Traced], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = code_of(steps[1])
    before = code.key(steps[1])
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    if change == "width":
        code.reads[0] = code.reads[0][:-1]
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        assert code.key(steps[1]) != before


def test_code_is_made_once_for_all_that_differ_in_what_they_read(
    steps: dict[int, Traced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(program: torch.export.ExportedProgram, package_path: str, inductor_configs: dict[str, bool]) -> str:
        Path(package_path).write_text("\n".join(program.state_dict), encoding="utf-8")
        made.append(package_path)
        return package_path

    def load(package: str) -> SimpleNamespace:
        names = Path(package).read_text(encoding="utf-8").splitlines()
        if not names:
            raise RuntimeError("not a ZIP archive")
        return SimpleNamespace(
            get_constant_fqns=lambda: names,
            load_constants=lambda given, **_: sorted(given) == sorted(names) or pytest.fail("other constants"),
            loader=SimpleNamespace(run=None),
        )

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", make)
    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    monkeypatch.setattr(Code, "program", lambda code, traced: SimpleNamespace(state_dict=code.named()))
    for step in (*steps.values(), *steps.values()):
        compile_traced(step)
    assert len(made) == 2
    next(code_folder().glob("*.pt2")).write_bytes(b"")
    for step in steps.values():
        compile_traced(step)
    assert len(made) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda package: SimpleNamespace(get_constant_fqns=list))
    with pytest.raises(UserError, match="the values of read_0"):
        compile_traced(steps[0])
    assert len(list(code_folder().glob("*"))) == 2


class Writes(LinearHead):
    """Writes into parts of tensors, reads a weight twice, and compares with a length."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        rows, shifts = features.clone(), torch.zeros(features.shape[-1])
        rows[:, 0] = 0
        shifts[::2] = -1.0
        weight = self.linear.weight
        long = features.sum(1, keepdim=True) >= features.shape[0]
        return (rows + shifts) @ weight.t() + (rows * long) @ weight.t()


def test_what_writes_into_parts_of_tensors_is_kept_and_weights_are_read_once() -> None:
    torch.manual_seed(0)
    network = EarlyExitNetwork(make_vit(depth=1), [], inference_module=Writes).eval()
    head, rows = Writes(16, 10), torch.randn(4, 16)
    with torch.no_grad():
        step = trace_function("exit_0", network, None, lambda rows: (head(rows),), rows, rows[:-1])
        code = code_of(step)
        assert torch.equal(code.module(rows)[0], head(rows))
    assert [tuple(tensor.shape) for tensor in code.reads].count((16, 10)) == 1
    with pytest.raises(UserError, match="writes into a part of a tensor"):
        encode(step)


def test_processors_of_other_instructions_have_other_code(
    steps: dict[int, Traced], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = code_of(steps[1])
    before = code.key(steps[1])
    monkeypatch.setattr("eenet.runtime.codes._processor", lambda: "avx512f amx_tile")
    assert code.key(steps[1]) != before
