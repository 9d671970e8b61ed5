from contextlib import nullcontext
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eenet.errors import UserError
from eenet.gates import SchedulerGate
from eenet.network import EarlyExitNetwork
from eenet.policies import FixedExit, Policy, Threshold
from eenet.runtime import ALWAYS, Compaction, EarlyExitRuntime, Times, route, speed_row, time_rounds
from tests._dummies import make_network

NEVER = Compaction(copy_cost=float("inf"))


class Scripted(Policy):
    """Leaves as a table `(exits - 1, batch)` says, even more than once; its memory is the row."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def start(self, scores: Tensor) -> Tensor:
        return torch.arange(len(scores))

    def decide(self, exit: int, predictions: Tensor, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.table[exit, memory], memory


def gathered(network: EarlyExitNetwork, inputs: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    outputs = network(inputs)
    exits = policy.exits(outputs.logits.argmax(-1), outputs.scores)
    return outputs.logits[torch.arange(len(inputs)), exits], exits


@pytest.mark.parametrize("boosted", [False, True])
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    rule=st.sampled_from([ALWAYS, NEVER, Compaction(), Compaction(0.5, 1.0)]),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_whoever_leaves_and_whenever_the_batch_is_compacted_routing_gathers(
    boosted: bool, batch: int, share: float, rule: Compaction, seed: int
) -> None:
    torch.manual_seed(seed)
    network = make_network(boosted=boosted).with_gate(SchedulerGate(3, 10)).eval()
    inputs = torch.randn(batch, 1, 8, 8)
    policy = Scripted(torch.rand(3, batch) < share)
    logits, exits = gathered(network, inputs, policy)
    routed = route(network, inputs, policy, rule)
    assert routed.exits.tolist() == exits.tolist()
    torch.testing.assert_close(routed.logits, logits, atol=1e-5, rtol=1e-4)
    assert routed.macs.tolist() == [network.costs.cumulative[exit] for exit in exits]


class Operations(TorchDispatchMode):
    """Counts what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **kwargs or {})

    def count(self, *names: str) -> int:
        return sum(self.names.count(name) for name in names)


WAITS = ("nonzero", "_local_scalar_dense", "is_nonzero", "_to_cpu")
COPIES = ("index_select", "index", "index_put_", "cat", "clone")


@pytest.mark.parametrize("leaver", [0, 1, -1])
@torch.no_grad()
def test_one_sample_is_neither_indexed_nor_copied(leaver: int) -> None:
    network = make_network()
    inputs = torch.randn(1, 1, 8, 8)
    route(network, inputs, FixedExit(leaver))
    with Operations() as stages:
        state = network.backbone.embed(inputs)
        for stage in range(4):
            state = network.backbone.run_stage(stage, state)
    with Operations() as seen:
        route(network, inputs, FixedExit(leaver))
    assert seen.count("nonzero", "index_select", "index_put_", "nonzero_static") == 0
    gates = leaver + 1 if leaver >= 0 else 3
    assert seen.count("cat", "clone") == stages.count("cat", "clone") + gates + 2  # statistics; its exit and its MACs
    assert seen.count(*WAITS) == gates


@torch.no_grad()
def test_the_host_waits_once_per_exit() -> None:
    network = make_network()
    inputs = torch.randn(12, 1, 8, 8)
    table = torch.zeros(3, 12, dtype=torch.bool)
    table[0, :4] = table[1, 4:7] = table[2, 8] = True
    _ = network.costs
    with Operations() as seen:
        route(network, inputs, Scripted(table), ALWAYS)
    assert seen.count(*WAITS) == 3
    assert seen.count("nonzero_static") == 3
    with Operations() as seen:
        route(network, inputs, FixedExit())
    assert seen.count(*WAITS) == 3
    assert seen.count("nonzero_static", "index_select", "index_put_") == 0


def rows_per_stage(network: EarlyExitNetwork, inputs: Tensor, policy: Policy, rule: Compaction) -> list[int]:
    seen: list[int] = []
    run_stage = network.backbone.run_stage
    network.backbone.run_stage = lambda i, state: seen.append(len(state)) or run_stage(i, state)  # type: ignore[method-assign, func-returns-value]
    route(network, inputs, policy, rule)
    network.backbone.run_stage = run_stage  # type: ignore[method-assign]
    return seen


@torch.no_grad()
def test_the_decided_ride_along_until_dropping_them_pays() -> None:
    network, inputs = make_network(), torch.randn(10, 1, 8, 8)
    _ = network.costs  # counting runs the stages, too
    table = torch.zeros(3, 10, dtype=torch.bool)
    table[0, 0] = table[1, 3] = table[1, 4] = True
    policy = Scripted(table)
    assert rows_per_stage(network, inputs, policy, ALWAYS) == [10, 9, 7, 7]
    assert rows_per_stage(network, inputs, policy, NEVER) == [10, 10, 10, 10]
    # 1 row for 3 stages is worth less than 9 copies at 0.5, then 3 rows for 2 stages more than 7
    assert rows_per_stage(network, inputs, policy, Compaction(0.5, 0.0)) == [10, 10, 7, 7]


@given(
    leaving=st.integers(1, 50),
    staying=st.integers(1, 50),
    stages=st.integers(1, 12),
    cost=st.floats(0, 1),
)
def test_compaction_pays_more_with_more_leaving_and_more_stages(
    leaving: int, staying: int, stages: int, cost: float
) -> None:
    rule = Compaction(cost, 0.0)
    if rule.pays(leaving, staying, stages):
        assert rule.pays(leaving + 1, staying, stages)
        assert rule.pays(leaving, staying - 1, stages)
        assert rule.pays(leaving, staying, stages + 1)
    assert rule.pays(leaving, staying, stages) == (leaving * stages > cost * staying)


@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
@torch.no_grad()
def test_low_precision_is_honoured(kind: str) -> None:
    network, inputs = make_network(), torch.randn(16, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else nullcontext():
        if kind == "bfloat16":
            network, inputs = network.bfloat16(), inputs.bfloat16()
        policy = Scripted(torch.rand(3, 16) < 0.3)
        logits, exits = gathered(network, inputs, policy)
        routed = EarlyExitRuntime(network, policy)(inputs)
    assert routed.logits.dtype == torch.bfloat16
    assert routed.exits.tolist() == exits.tolist()
    torch.testing.assert_close(routed.logits, logits, atol=5e-2, rtol=5e-2)


def test_a_policy_for_another_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.thresholds"):
        EarlyExitRuntime(make_network(), Threshold([0.5]))


def test_rounds_are_interleaved_paired_and_warmed_up() -> None:
    calls: list[tuple[str, int]] = []
    contenders = {name: lambda batch, name=name: calls.append((name, batch)) for name in "ab"}
    times = time_rounds(contenders, [10, 20, 30], 2, torch.device("cpu"), warm_up=1)
    assert [batch for _, batch in calls] == 3 * [10, 10, 20, 20, 30, 30]
    assert "".join(name for name, _ in calls) == "abba" * 4 + "ab"
    assert {name: (found.wall.shape, found.cpu.shape) for name, found in times.items()} == dict.fromkeys(
        "ab", ((2, 3), (2, 3))
    )


def test_a_turn_may_be_of_several_batches() -> None:
    calls: list[str] = []
    contenders = {name: lambda batch, name=name: calls.append(f"{name}{batch}") for name in "ab"}
    times = time_rounds(contenders, [1, 2, 3], 1, torch.device("cpu"), warm_up=1, in_a_row=2)
    assert " ".join(calls) == "a1 a2 b1 b2 b3 a3 a1 a2 b1 b2 b3 a3"
    assert {found.wall.shape for found in times.values()} == {(1, 3)}


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.process_time", lambda: 2 * now[0])
    return now


def test_speed_ups_are_medians_of_paired_ratios(ticks: list[float]) -> None:
    def taking(*seconds: float) -> Any:
        left = iter(seconds)

        def run(batch: Any) -> None:
            ticks[0] += next(left)

        return run

    contenders = {"full": taking(9, 9, 1, 1, 2, 2, 1, 5), "half": taking(9, 9, 0.5, 0.5, 3, 1, 1, 1)}
    times = time_rounds(contenders, [None, None], 3, torch.device("cpu"), warm_up=1)
    assert times["full"].wall.tolist() == [[1, 1], [2, 2], [1, 5]]
    assert times["half"].cpu.tolist() == [[1, 1], [6, 2], [2, 2]]
    row = speed_row("half", times["half"], times["full"], 8, 4.0)
    assert (row["realised_speedup"], row["ratio"], row["cpu_speedup"], row["cpu_ratio"]) == (2, 0.5, 2, 0.5)
    assert (row["p50_ms"], row["throughput"]) == (1000, 8)
    assert row["p95_ms"] == pytest.approx(1e3 * np.quantile([0.5, 0.5, 3, 1, 1, 1], 0.95))
    assert speed_row("full", times["full"], times["full"], 8, 1.0)["ratio"] == 1
    assert isinstance(times["full"], Times)
