"""Continuous batching for classifiers: batches of later stages are refilled from several requests."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones.base import select
from eenet.errors import UserError
from eenet.routing.route import Routed, routed
from eenet.runtime.deployed import EarlyExitRuntime
from eenet.runtime.exported import ExportedRuntime
from eenet.runtime.routed_onnx import RoutedOnnx


@dataclass
class _Request:
    future: Future[Routed]
    slots: Tensor
    missing: int


@dataclass
class _Waiting:
    """Samples of one request, or what is left of one batch, that wait for a step.

    `since` is when the first step of the earliest of them began, infinite before.
    """

    slots: Tensor
    carried: Any
    since: float = math.inf

    def rows(self, some: slice) -> _Waiting:
        """Some of them."""
        return _Waiting(self.slots[some], pytree.tree_map(lambda rows: rows[some], self.carried), self.since)


class _Pool:
    """Who waits for one step with inputs of one shape, first come first."""

    def __init__(self) -> None:
        self.parts: deque[_Waiting] = deque()
        self.rows = 0

    @property
    def since(self) -> float:
        """That of the first."""
        return self.parts[0].since

    def add(self, part: _Waiting) -> None:
        """Put some at the end."""
        self.parts.append(part)
        self.rows += len(part.slots)

    def take(self, room: int) -> list[_Waiting]:
        """Those at the front, up to a number of samples."""
        taken: list[_Waiting] = []
        room = min(room, self.rows)
        self.rows -= room
        while room:
            part = self.parts.popleft()
            if len(part.slots) > room:
                self.parts.appendleft(part.rows(slice(room, None)))
                part = part.rows(slice(room))
            taken.append(part)
            room -= len(part.slots)
        return taken


class RebatchingQueue:
    """Serves requests of any size from one thread that fills the batch of every step with whoever waits for it.

    A batch of arrivals goes on from step to step, and whoever waits for a step joins it there, whatever path a network
    whose tree branches has brought it by. When fewer than
    `min_batch` are left and there are new arrivals, they wait for those; so late steps do not run on a sample or two
    while there is other work, and nobody waits where there is none. The thread runs, in this order: a later step with a
    sample whose first step began more than `max_wait` ago, the deepest step with `min_batch` samples, new arrivals, the
    deepest step with any sample. Inputs of different shapes are never mixed. The thread works under the autocast of the
    caller who makes the queue.

    Requests do not harm each other: a batch that fails is run again request by request, and those that fail alone get
    the error; the samples of a cancelled request are dropped before their next step.

    Args:
        runtime: The network, its policy and its steps; warmed up by the caller.
        max_batch: The most samples that a step runs on.
        min_batch: Samples from which a later step runs though there are new arrivals; a quarter of `max_batch` if
            `None`.
        max_wait: Seconds after its first step began after which a sample goes before fuller batches.
        capacity: The most samples in the queue; `submit` blocks while there is no room.

    Raises:
        UserError: A runtime without steps, a size below 1, a negative time, or a smallest batch above the largest.

    Example:
        ```python
        with RebatchingQueue(runtime, max_batch=32) as service:
            futures = [service.submit(images) for images in requests]
            results = [future.result() for future in futures]
        ```
    """

    def __init__(
        self,
        runtime: EarlyExitRuntime | ExportedRuntime | RoutedOnnx,
        max_batch: int = 32,
        min_batch: int | None = None,
        max_wait: float = 0.05,
        capacity: int = 1024,
    ) -> None:
        if isinstance(runtime, RoutedOnnx):
            raise UserError(
                "runtime", "onnx", "one file runs all steps at once; export with --format torch or onnx-steps"
            )
        min_batch = max(1, max_batch // 4) if min_batch is None else min_batch
        sizes = {"max_batch": max_batch, "min_batch": min_batch, "capacity": capacity}
        for field, value, least in [*((field, size, 1) for field, size in sizes.items()), ("max_wait", max_wait, 0)]:
            if not value >= least:
                raise UserError(field, value, f"must be at least {least}")
        if min_batch > max_batch:
            raise UserError("min_batch", min_batch, f"must not be above max_batch, {max_batch}")
        self.runtime, self.max_batch, self.min_batch = runtime, max_batch, min_batch
        self.max_wait, self.capacity = max_wait, capacity
        self._tree = runtime.network.tree
        self._first = self._tree.place_of[runtime.first_node]
        self._place_of = torch.tensor(self._tree.place_of)
        self._changed = threading.Condition()  # guards the three fields below
        self._free = deque(range(capacity))
        self._arrived: deque[tuple[_Request, Any]] = deque()
        self._closed = False
        self._owner = torch.zeros(capacity, dtype=torch.long)  # by slot: number of the request
        self._began = torch.zeros(capacity, dtype=torch.double)  # by slot: when its first step began
        self._nodes = torch.zeros(capacity, dtype=torch.long)  # by slot: where it is, or waits for the step to
        self._logits: Tensor | None = None
        self._requests: dict[int, _Request] = {}
        self._pools: list[dict[Hashable, _Pool]] = [defaultdict(_Pool) for _ in runtime.steps]
        self._numbers = 0
        device = next(runtime.network.parameters()).device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._autocast = torch.autocast(device, dtype, enabled)
        self._thread = threading.Thread(target=self._serve, name="eenet-queue", daemon=True)
        self._thread.start()

    def submit(self, inputs: Any, timeout: float | None = None) -> Future[Routed]:
        """Hand in a batch.

        Args:
            inputs: As the backbone takes it, 1 to `capacity` samples; not to be changed before the result is there.
            timeout: Seconds to wait for room, without end when `None`.

        Returns:
            The future of what `route` would return, on the CPU, in the order of the inputs. `cancel` withdraws it.

        Raises:
            UserError: No samples, or more than the queue can hold.
            queue.Full: There was no room in time.
            RuntimeError: The queue is closed.
        """
        leaves = pytree.tree_leaves(inputs)
        size = len(leaves[0])
        if any(len(leaf) != size for leaf in leaves):
            raise UserError("inputs", [len(leaf) for leaf in leaves], "all parts need the same number of samples")
        if not 1 <= size <= self.capacity:
            raise UserError("inputs", size, f"must be 1 to {self.capacity} samples, the capacity of the queue")
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or len(self._free) >= size, timeout):
                raise queue.Full(f"no room for {size} samples within {timeout} s")
            if self._closed:
                raise RuntimeError("the queue is closed")
            slots = torch.tensor([self._free.popleft() for _ in range(size)])
            request = _Request(Future(), slots, size)
            self._arrived.append((request, inputs))
            self._changed.notify_all()
        return request.future

    def close(self) -> None:
        """Take no more requests, finish those that are there, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> RebatchingQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @torch.no_grad()
    def _serve(self) -> None:
        try:
            with self._autocast:
                while self._admit_arrivals():
                    self._run(*self._choose())
        except BaseException as error:
            self._abandon(error)
            raise

    def _admit_arrivals(self) -> bool:
        """Wait for work; false when the queue is closed and all work is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._closed or self._requests)
            while self._arrived:
                self._admit(*self._arrived.popleft())
        return bool(self._requests)

    def _admit(self, request: _Request, inputs: Any) -> None:
        self._numbers += 1
        self._requests[self._numbers] = request
        self._owner[request.slots] = self._numbers
        self._nodes[request.slots] = self.runtime.first_node
        self._pools[self._first][_shapes(inputs)].add(_Waiting(request.slots, inputs))

    def _choose(self) -> tuple[int, Hashable]:
        """The step to run and the shape of its samples."""
        waiting = [(step, shape, pool) for step, pools in enumerate(self._pools) for shape, pool in pools.items()]
        oldest = min(waiting, key=lambda entry: entry[2].since)
        if time.monotonic() - oldest[2].since > self.max_wait:
            return oldest[:2]
        enough = [entry for entry in waiting if entry[2].rows >= self.min_batch]
        if enough:
            return enough[-1][:2]
        return (waiting[0] if waiting[0][0] == self._first else waiting[-1])[:2]

    def _run(self, step: int, shape: Hashable) -> None:
        """Run a step on the samples that have waited longest for it, up to a batch."""
        pool = self._pools[step][shape]
        taken = pool.take(self.max_batch)
        if not pool.rows:
            del self._pools[step][shape]
        slots, carried = taken[0].slots, taken[0].carried
        if len(taken) > 1:
            slots = torch.cat([part.slots for part in taken])
            carried = pytree.tree_map(lambda *rows: torch.cat(rows), *(part.carried for part in taken))
        withdrawn = [n for n in self._owner[slots].unique().tolist() if self._requests[n].future.done()]
        if withdrawn:
            gone = torch.isin(self._owner[slots], torch.tensor(withdrawn))
            self._release(slots[gone])
            keep = (~gone).nonzero().squeeze(1)
            slots, carried = slots[keep], select(carried, keep)
        if len(slots):
            self._step(step, slots, carried)

    def _step(self, step: int, slots: Tensor, carried: Any) -> None:
        if step == self._first:
            self._began[slots] = time.monotonic()
        try:
            after, logits, leave = self.runtime.steps[step](carried)
        except Exception as error:
            owners = self._owner[slots]
            numbers = owners.unique().tolist()
            if len(numbers) == 1:
                self._fail(numbers[0], error)
                self._release(slots)
                return
            for number in numbers:
                keep = (owners == number).nonzero().squeeze(1)
                self._step(step, slots[keep], select(carried, keep))
            return
        if leave is not None:  # in a chain, the number of the step is that of its node
            self._nodes[slots] = leave.cpu() if self._tree.branches else step + (~leave).long().cpu()
        places = self._place_of[self._nodes[slots]]
        for place in places.unique().tolist():
            rows = (places == place).nonzero().squeeze(1)
            going = slots[rows]
            if place == step:
                self._record(going, logits.index_select(0, rows.to(logits.device)))
            else:
                carried = after if len(rows) == len(slots) else select(after, rows.to(logits.device))
                self._pools[place][_shapes(carried)].add(_Waiting(going, carried, self._began[going].min().item()))

    def _record(self, slots: Tensor, logits: Tensor) -> None:
        """Keep the results of those that leave."""
        if self._logits is None:
            self._logits = torch.zeros(self.capacity, logits.shape[1], dtype=logits.dtype)
        self._logits[slots] = logits.to("cpu", self._logits.dtype)
        self._release(slots)

    def _release(self, slots: Tensor) -> None:
        """Count samples that are done, and finish the requests of which none is missing."""
        numbers, counts = self._owner[slots].unique(return_counts=True)
        finished = []
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            request = self._requests[number]
            request.missing -= count
            if not request.missing:
                finished.append(self._requests.pop(number))
                self._finish(finished[-1])
        if finished:
            with self._changed:
                self._free.extend(torch.cat([request.slots for request in finished]).tolist())
                self._changed.notify_all()

    def _finish(self, request: _Request) -> None:
        if not request.future.done() and request.future.set_running_or_notify_cancel():
            assert self._logits is not None
            found = self._logits[request.slots], self._nodes[request.slots]
            request.future.set_result(routed(self.runtime.network.costs, *found))

    def _fail(self, number: int, error: BaseException) -> None:
        future = self._requests[number].future
        if not future.done() and future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _abandon(self, error: BaseException) -> None:
        """The thread dies: nobody may wait for ever."""
        with self._changed:
            self._closed = True
            for number, (request, _) in enumerate(self._arrived, self._numbers + 1):
                self._requests[number] = request
            self._changed.notify_all()
        for number in self._requests:
            self._fail(number, error)


def _shapes(carried: Any) -> Hashable:
    """What has to agree before samples are put in one batch."""
    return tuple((leaf.shape[1:], leaf.dtype, leaf.device) for leaf in pytree.tree_leaves(carried))
