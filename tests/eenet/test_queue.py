import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.policies import Patience, Threshold
from eenet.runtime import EarlyExitRuntime, RebatchingQueue
from tests._dummies import make_network


@pytest.fixture
def runtime() -> EarlyExitRuntime:
    """Some samples leave at every exit."""
    network = make_network()
    with torch.no_grad():
        scores = network(torch.randn(256, 1, 8, 8)).scores
    return EarlyExitRuntime(network, Threshold([scores[:, gate].quantile(0.7).item() for gate in range(3)]))


class Watched:
    """Notes the batch of every step, and holds the first step until it is let go."""

    def __init__(self, runtime: EarlyExitRuntime, held: bool = False) -> None:
        self.batches: list[tuple[int, int]] = []
        self.entered, self.go = threading.Event(), threading.Event()
        if not held:
            self.go.set()
        runtime.steps = [self.watch(number, step) for number, step in enumerate(runtime.steps)]

    def watch(self, number: int, step: Any) -> Any:
        def run(carried: Any) -> Any:
            state = carried.state if number else carried
            self.batches.append((number, len(state)))
            self.entered.set()
            assert self.go.wait(10)
            if number == 0 and (state == 666).any():
                raise ValueError("poison")
            return step(carried)

        return run


def free(service: RebatchingQueue) -> list[int]:
    return sorted(service._free)


@pytest.mark.parametrize("max_wait", [0.0, 10.0])
def test_results_are_those_of_one_by_one_inference(runtime: EarlyExitRuntime, max_wait: float) -> None:
    requests = [torch.randn(size, 1, 8, 8) for size in torch.randint(1, 12, (60,)).tolist()]
    with RebatchingQueue(runtime, 16, 4, max_wait, capacity=64) as service:
        with ThreadPoolExecutor(4) as clients:
            futures = list(clients.map(service.submit, requests))
        results = [future.result(10) for future in futures]
        for inputs, found in zip(requests, results, strict=True):
            alone = [runtime(row.unsqueeze(0)) for row in inputs]
            assert found.exits.tolist() == [one.exits.item() for one in alone]
            assert found.macs.tolist() == [one.macs.item() for one in alone]
            torch.testing.assert_close(found.logits, torch.cat([one.logits for one in alone]), atol=1e-5, rtol=1e-4)
    assert len(torch.cat([found.exits for found in results]).unique()) == 4
    assert free(service) == list(range(64))
    assert not service._requests
    assert not any(service._pools)


def test_batches_of_later_steps_are_refilled_from_several_requests(runtime: EarlyExitRuntime) -> None:
    watched = Watched(runtime, held=True)
    with RebatchingQueue(runtime, max_batch=8, min_batch=8, max_wait=60) as service:
        futures = [service.submit(torch.randn(1, 1, 8, 8)) for _ in range(1)]
        assert watched.entered.wait(10)
        futures += [service.submit(torch.randn(1, 1, 8, 8)) for _ in range(160)]
        watched.go.set()
        exits = torch.cat([future.result(10).exits for future in futures])
    for step in range(1, 4):
        sizes = [size for number, size in watched.batches if number == step]
        assert sum(sizes) == int((exits >= step).sum())
        assert sizes.count(8) >= sum(sizes) // 8 - 1
    assert max(size for _, size in watched.batches) == 8


@pytest.mark.parametrize(("max_wait", "second"), [(0.0, 1), (60.0, 0)])
def test_a_sample_that_has_waited_too_long_goes_before_fuller_batches(
    runtime: EarlyExitRuntime, max_wait: float, second: int
) -> None:
    runtime = EarlyExitRuntime(runtime.network, Patience(3))  # nobody leaves before the third exit
    watched = Watched(runtime, held=True)
    with RebatchingQueue(runtime, 4, 4, max_wait) as service:
        futures = [service.submit(torch.randn(2, 1, 8, 8))]
        assert watched.entered.wait(10)
        futures.append(service.submit(torch.randn(8, 1, 8, 8)))
        watched.go.set()
        assert [len(future.result(10).exits) for future in futures] == [2, 8]
    assert watched.batches[:2] == [(0, 2), (second, 2 if second else 4)]


def test_a_poisonous_sample_harms_its_own_request_only(runtime: EarlyExitRuntime) -> None:
    watched = Watched(runtime, held=True)
    with RebatchingQueue(runtime, max_batch=16) as service:
        first = service.submit(torch.randn(1, 1, 8, 8))
        assert watched.entered.wait(10)
        good = [torch.randn(2, 1, 8, 8) for _ in range(3)]
        bad = torch.cat([torch.randn(1, 1, 8, 8), torch.full((1, 1, 8, 8), 666.0)])
        futures = [service.submit(inputs) for inputs in (good[0], bad, good[1], torch.randn(2, 3, 5, 5), good[2])]
        watched.go.set()
        with pytest.raises(ValueError, match="poison"):
            futures[1].result(10)
        assert futures[3].exception(10) is not None
        for inputs, future in zip(good, (futures[0], futures[2], futures[4]), strict=True):
            torch.testing.assert_close(future.result(10).logits, runtime(inputs).logits, atol=1e-5, rtol=1e-4)
        assert first.result(10).exits.shape == (1,)
    assert len(free(service)) == 1024


def test_a_poison_of_a_later_step_fails_the_whole_request_and_frees_its_slots(runtime: EarlyExitRuntime) -> None:
    runtime = EarlyExitRuntime(runtime.network, Patience(3))
    step = runtime.steps[1]

    def failing(carried: Any) -> Any:
        if len(carried.state) == 4:
            raise RuntimeError("second step")
        return step(carried)

    runtime.steps[1] = failing
    with RebatchingQueue(runtime, max_batch=4) as service:
        with pytest.raises(RuntimeError, match="second step"):
            service.submit(torch.randn(6, 1, 8, 8)).result(10)
        assert service.submit(torch.randn(3, 1, 8, 8)).result(10).exits.tolist() == [3, 3, 3]
    assert len(free(service)) == 1024


def test_a_client_that_goes_away_costs_no_more_steps(runtime: EarlyExitRuntime) -> None:
    watched = Watched(runtime, held=True)
    with RebatchingQueue(runtime, max_batch=2) as service:
        stays = service.submit(torch.randn(2, 1, 8, 8))
        assert watched.entered.wait(10)
        leaves = service.submit(torch.randn(6, 1, 8, 8))
        assert leaves.cancel()
        watched.go.set()
        assert stays.result(10).exits.shape == (2,)
    assert leaves.cancelled()
    assert [size for number, size in watched.batches if number == 0] == [2]
    assert len(free(service)) == 1024


def test_submitting_waits_for_room(runtime: EarlyExitRuntime) -> None:
    watched = Watched(runtime, held=True)
    with RebatchingQueue(runtime, capacity=4) as service:
        first = service.submit(torch.randn(4, 1, 8, 8))
        with pytest.raises(queue.Full, match="no room for 1"):
            service.submit(torch.randn(1, 1, 8, 8), timeout=0.05)
        with ThreadPoolExecutor(1) as client:
            later = client.submit(service.submit, torch.randn(3, 1, 8, 8))
            watched.go.set()
            assert later.result(10).result(10).exits.shape == (3,)
        assert first.done()


def test_closing_finishes_what_is_there_and_takes_no_more(runtime: EarlyExitRuntime) -> None:
    service = RebatchingQueue(runtime)
    futures = [service.submit(torch.randn(5, 1, 8, 8)) for _ in range(10)]
    service.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        service.submit(torch.randn(1, 1, 8, 8))


class Death(BaseException):
    """Not an error of a sample."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_died(runtime: EarlyExitRuntime) -> None:
    def dying(carried: Any) -> Any:
        raise Death

    runtime.steps[2] = dying
    service = RebatchingQueue(runtime, max_batch=4)
    future = service.submit(torch.randn(64, 1, 8, 8))
    assert isinstance(future.exception(10), Death)
    service.close()
    with pytest.raises(RuntimeError, match="closed"):
        service.submit(torch.randn(1, 1, 8, 8))


def test_autocast_of_its_maker_holds_in_the_thread(runtime: EarlyExitRuntime) -> None:
    with torch.autocast("cpu", torch.bfloat16), RebatchingQueue(runtime) as service:
        assert service.submit(torch.randn(3, 1, 8, 8)).result(10).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(0, 1, 8, 8), "inputs = 0: must be 1 to 8"),
        (torch.zeros(9, 1, 8, 8), "inputs = 9: must be 1 to 8"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, r"inputs = \[2, 3\]"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(runtime: EarlyExitRuntime, inputs: Tensor, message: str) -> None:
    with RebatchingQueue(runtime, capacity=8) as service, pytest.raises(UserError, match=message):
        service.submit(inputs)


@pytest.mark.parametrize(
    "arguments", [{"max_batch": 0}, {"min_batch": 0}, {"min_batch": 33}, {"max_wait": -1.0}, {"capacity": 0}]
)
def test_sizes_are_checked(runtime: EarlyExitRuntime, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        RebatchingQueue(runtime, **arguments)
