"""Steps as machine code: compiled really in the slow tests, for seconds each; the others run their traced graphs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eenet.backbones import Bert
from eenet.errors import UserError
from eenet.gates import SchedulerGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Patience, RandomExits, SequentialGates, Threshold
from eenet.runtime import EarlyExitRuntime, route
from eenet.runtime.ahead import compile_function
from tests._dummies import make_network, make_resnet, make_vit


@pytest.fixture(autouse=True)
def _no_code_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler; apt-get install g++")


def some_leave(network: EarlyExitNetwork, inputs: Any) -> Threshold:
    with torch.no_grad():
        return Threshold(network(inputs).scores.quantile(0.6, dim=0).tolist())


@needs_compiler
@pytest.mark.slow
@torch.no_grad()
def test_machine_code_routes_as_the_network_does() -> None:
    torch.manual_seed(0)
    network = EarlyExitNetwork(make_vit(depth=2), [0]).eval()
    inputs = torch.randn(33, 1, 8, 8)
    policy = some_leave(network, inputs)
    runtime = EarlyExitRuntime(network, policy, compile=True)
    for batch in (1, 2, 33):
        expected, routed = route(network, inputs[:batch], policy), runtime(inputs[:batch])
        assert routed.exits.tolist() == expected.exits.tolist()
        torch.testing.assert_close(routed.logits, expected.logits)
    assert expected.exits.unique().tolist() == [0, 1]
    weight = network.heads[0].linear.weight
    weight.zero_()  # the machine code reads the network's own weights
    torch.testing.assert_close(runtime(inputs).logits, route(network, inputs, policy).logits)
    assert runtime.warm_up(inputs) > 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("policy", "boosted"),
    [
        pytest.param(SequentialGates(), False, marks=pytest.mark.slow),
        pytest.param(Patience(2), True, marks=pytest.mark.slow),
        pytest.param("threshold", False, marks=pytest.mark.slow),
    ],
)
def test_one_graph_per_step_serves_every_batch(interpreted: list[str], policy: Any, boosted: bool) -> None:
    network = make_network(boosted=boosted).with_gate(SchedulerGate(3, 10)).eval()
    inputs = torch.randn(33, 1, 8, 8)
    policy = some_leave(network, inputs) if policy == "threshold" else policy
    runtime = EarlyExitRuntime(network, policy, compile=True)
    assert interpreted == ["exit_0", "exit_1", "exit_2", "exit_3"]
    for batch in (1, 2, 5, 33):
        expected, routed = route(network, inputs[:batch], policy), runtime(inputs[:batch])
        assert routed.exits.tolist() == expected.exits.tolist()
        torch.testing.assert_close(routed.logits, expected.logits)


@pytest.mark.slow
@torch.no_grad()
def test_random_exits_are_drawn_for_every_batch(interpreted: list[str]) -> None:
    runtime = EarlyExitRuntime(make_network().eval(), RandomExits([0.1, 0.2, 0.3, 0.4]), compile=True)
    inputs = torch.randn(2000, 1, 8, 8)
    drawn = [runtime(inputs).exits for _ in range(2)]
    assert not torch.equal(*drawn)
    shares = torch.cat(drawn).bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.04, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_texts_of_any_length_and_order_of_their_parts(interpreted: list[str]) -> None:
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    network = EarlyExitNetwork(Bert(3, overrides=config | {"vocab_size": 50})).eval()
    runtime = EarlyExitRuntime(network, Threshold([0.4]), compile=True)
    for rows, tokens in ((1, 7), (5, 12)):
        ids = torch.randint(1, 50, (rows, tokens))
        mask = torch.ones_like(ids)
        mask[-1, 4:] = 0
        pair = {"attention_mask": mask, "token_type_ids": torch.randint(0, 2, ids.shape), "input_ids": ids}
        for inputs in (pair, {"input_ids": ids}):
            expected, routed = route(network, inputs, Threshold([0.4])), runtime(inputs)
            assert routed.exits.tolist() == expected.exits.tolist()
            torch.testing.assert_close(routed.logits, expected.logits)
    with pytest.raises(UserError, match=r"inputs = .*None"):
        runtime({"attention_mask": mask})


@pytest.mark.slow
@torch.no_grad()
def test_whole_functions_and_feature_maps(interpreted: list[str]) -> None:
    network = EarlyExitNetwork(make_resnet()).eval()
    inputs = torch.randn(5, *network.backbone.input_shape).to(memory_format=torch.channels_last)
    run = compile_function("full_network", network, network.backbone)
    assert interpreted == ["full_network"]
    torch.testing.assert_close(run(inputs), network.backbone(inputs))
    policy = some_leave(network, inputs)
    torch.testing.assert_close(
        EarlyExitRuntime(network, policy, compile=True)(inputs).logits, route(network, inputs, policy).logits
    )


def test_inputs_that_the_code_was_not_made_for_are_refused(interpreted: list[str]) -> None:
    runtime = EarlyExitRuntime(make_network(exits=[1]).eval(), SequentialGates(), compile=True)
    wide, double = torch.zeros(2, 1, 8, 9), torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    for inputs in (wide, double, torch.zeros(2, 8, 8), torch.zeros(1, 1)):
        with pytest.raises(UserError, match="the steps were compiled for"):
            runtime(inputs)


@needs_compiler
@pytest.mark.slow
@torch.no_grad()
def test_autocast_is_that_of_the_compilation() -> None:
    network, inputs = EarlyExitNetwork(make_vit(), [1]).eval(), torch.randn(16, 1, 8, 8)
    policy = some_leave(network, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        runtime = EarlyExitRuntime(network, policy, compile=True)
        expected = route(network, inputs, policy)
    routed = runtime(inputs)
    assert routed.logits.dtype == torch.bfloat16
    same = routed.exits == expected.exits
    assert same.float().mean() > 0.8
    torch.testing.assert_close(routed.logits[same], expected.logits[same], atol=5e-2, rtol=5e-2)


@pytest.mark.slow
def test_a_compiler_that_fails_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no g++\nand much more")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    with pytest.raises(
        UserError, match=r"compile = True: the step to exit_0 cannot be compiled \(RuntimeError: no g\+\+\)"
    ):
        EarlyExitRuntime(make_network().eval(), SequentialGates(), compile=True)
