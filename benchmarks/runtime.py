"""What the clock shows of routed networks.

    python benchmarks/runtime.py speed              # realised against theoretical speed-up near 60 % of the MACs
    python benchmarks/runtime.py speed --compile true
    python benchmarks/runtime.py onnx               # the same against the full network, all on ONNX Runtime
    python benchmarks/runtime.py queue              # a refilled queue against batches that only shrink
    python benchmarks/runtime.py soak --minutes 10  # the queue, full all the time

Prints JSON; `--output` writes it, too. Weights are random but for MiniLM's backbone: what is timed depends on where
samples leave, not on whether they are right. Thresholds are set on validation samples, test samples are timed. For
trained networks there is `eenet bench`.
"""

import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jsonargparse import auto_cli
from report import finish
from torch import Tensor
from torch.utils import _pytree as pytree

from datamodules import BBCNews, FashionMNIST, SplitData
from eenet.api.benchmarking import sample_batches, sample_rows
from eenet.backbones import Bert, CifarResNet, StagedBackbone, ViT
from eenet.exporting.contenders import onnx_contenders
from eenet.gates import ConfidenceGate, Gate, UncertaintyGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold
from eenet.runtime import EarlyExitRuntime, RebatchingQueue, Routed
from eenet.runtime.contenders import Contender, device_name, full_network, nobody_leaves, race, routed_network

CPU = torch.device("cpu")
LARGEST_REQUEST = 4
"""Samples of a request of the stream: 1 to this many."""


def make_vit(**overrides: Any) -> ViT:
    return ViT("vit_tiny_patch16_224", 10, 28, 1, overrides=overrides)


BACKBONES: dict[str, Callable[[], StagedBackbone]] = {
    "vit_8x128_17_tokens": lambda: make_vit(patch_size=7, embed_dim=128, depth=8, num_heads=4, global_pool="avg"),
    "vit_tiny_12x192_50_tokens": lambda: make_vit(patch_size=4, embed_dim=192, depth=12, num_heads=3),
    "cifar_resnet_14": lambda: CifarResNet(14, 10, 28, 1),
    "minilm_6x384_128_tokens": lambda: Bert(5, pretrained="minilm", pooling="mean"),
}


def prepare(
    name: str, budget: float, exits: Any = "all", gate: Callable[[int], Gate] = UncertaintyGate
) -> tuple[EarlyExitNetwork, Threshold, SplitData]:
    """A network with exits after every block, thresholds that cost about the budget, and the data."""
    torch.manual_seed(0)
    data = BBCNews(max_length=128) if name.startswith("minilm") else FashionMNIST(augment=False)
    data.prepare_data()
    backbone = BACKBONES[name]()
    exits = list(range(1, backbone.num_stages - 1, 2)) if exits == "second" else exits
    network = EarlyExitNetwork(backbone, exits, gate=gate).eval()
    return network, thresholds_near(network, data, budget), data


@torch.no_grad()
def thresholds_near(network: EarlyExitNetwork, data: SplitData, budget: float, batches: int = 4) -> Threshold:
    """Thresholds that let the same share of those still there leave at every exit, so large that the budget is kept."""
    scores = torch.cat([network(inputs).scores for inputs, _ in islice(data.loader("val"), batches)])
    fractions, predictions = network.costs.fractions(), torch.zeros(len(scores), network.num_exits)
    low, high = 0.0, 0.6
    for _ in range(30):
        share = (low + high) / 2
        policy = Threshold(equal_shares(scores, share))
        dear = fractions[policy.exits(predictions, scores)].mean() > budget
        low, high = (share, high) if dear else (low, share)
    return policy


def equal_shares(scores: Tensor, share: float) -> list[float]:
    limits: list[float] = []
    present = torch.ones(len(scores), dtype=torch.bool)
    for column in scores.unbind(1):
        limits.append(column[present].quantile(1 - share).item() if present.any() else float("inf"))
        present &= column < limits[-1]
    return limits


def plain_loop(network: EarlyExitNetwork, policy: Threshold, costs: Tensor, inputs: Any) -> Routed:
    """What anybody would write first, for exits after every block: index, and continue with those that stay."""
    backbone, thresholds = network.backbone, policy.arguments()["thresholds"]
    batch, last = len(pytree.tree_leaves(inputs)[0]), network.num_exits - 1
    logits, exits, rows = torch.empty(batch, backbone.num_classes), torch.full((batch,), last), torch.arange(batch)
    state = backbone.embed(inputs)
    for stage in range(last):
        state = backbone.run_stage(stage, state)
        found = network.logits_at(stage, network.read(stage, state), ())
        leave = network.gate.at(stage, found)[0] >= float(thresholds[stage])
        if leave.any():
            logits[rows[leave]], exits[rows[leave]] = found[leave], stage
            rows = rows[~leave]
            if not len(rows):
                break
            state = pytree.tree_map(lambda values, stay=~leave: values[stay], state)
    if len(rows):
        logits[rows] = backbone.classify(backbone.run_stage(last, state))
    return Routed(logits, exits, costs[exits], exits)


def speed(
    networks: list[str] | None = None,
    batches: list[int] | None = None,
    budget: float = 0.6,
    samples: int = 256,
    rounds: int = 7,
    compile: bool = False,
    output: Path | None = None,
) -> None:
    """Realised and theoretical speed-up near a budget, and the overhead when nobody leaves, beside the plain loop's.

    Args:
        networks: Of the benchmark's networks, all by default.
        batches: Batch sizes, 1, 32 and 256 by default.
        budget: Mean MACs that thresholds are set for, as a fraction of the full network's.
        samples: Test samples of a round.
        rounds: Interleaved rounds.
        compile: Compile the full and the routed network; the plain loop stays eager.
        output: JSON file.
    """
    found = {}
    for name in networks or BACKBONES:
        network, policy, data = prepare(name, budget)
        rows = sample_rows(data, samples)
        contenders = speed_contenders(network, policy, compile)
        found[name] = {
            f"batch_{size}": race(contenders, sample_batches(data, rows, size, CPU), size, rounds, CPU)
            for size in batches or [1, 32, 256]
        }
    conditions = {"device": device_name(CPU), "compiled": compile, "budget": budget, "rounds": rounds}
    finish({**conditions, "samples": samples, "networks": found}, output)


def onnx(
    networks: list[str] | None = None,
    exits: list[int] | None = None,
    batches: list[int] | None = None,
    budget: float = 0.6,
    samples: int = 256,
    rounds: int = 15,
    output: Path | None = None,
) -> None:
    """One routed ONNX file against the full network, both on ONNX Runtime, each in the parts of a batch that suit it.

    Args:
        networks: Of the benchmark's networks, the ViT-8 and the ResNet-14 by default.
        exits: Stages after which an exit reads; every second by default.
        batches: As for `speed`.
        budget: As for `speed`.
        samples: Test samples of a round.
        rounds: Interleaved rounds.
        output: JSON file.
    """
    found = {}
    for name in networks or ["vit_8x128_17_tokens", "cifar_resnet_14"]:
        network, policy, data = prepare(name, budget, exits or "second", ConfidenceGate)
        rows = sample_rows(data, samples)
        example = pytree.tree_map(lambda inputs: inputs[:3], sample_batches(data, rows, 3, CPU)[0])
        if isinstance(example, dict):
            example["attention_mask"] = torch.ones_like(example["attention_mask"])
        contenders = onnx_contenders(network, {"one file": (network, policy)}, example)
        found[name] = {"exits": network.exit_stages}
        for size in batches or [1, 32, 256]:
            timed = race(contenders, sample_batches(data, rows, size, CPU), size, rounds, CPU)
            parts = [one.run.length for one in contenders]
            found[name][f"batch_{size}"] = [{**row, "part": part} for row, part in zip(timed, parts, strict=True)]
    conditions = {"device": device_name(CPU), "budget": budget, "rounds": rounds, "samples": samples}
    finish({**conditions, "onnxruntime": version("onnxruntime"), "networks": found}, output)


def speed_contenders(network: EarlyExitNetwork, policy: Threshold, compile: bool) -> list[Contender]:
    never = Threshold([float("inf")] * (network.num_exits - 1))
    costs = torch.tensor(network.costs.cumulative)
    return [
        full_network(network, compile),
        routed_network("eenet", network, policy, compile),
        nobody_leaves(network, compile),
        Contender("plain loop", "routed", partial(plain_loop, network, policy, costs)),
        Contender("plain loop, nobody leaves", "overhead", partial(plain_loop, network, never, costs)),
    ]


class ShrinkingBatches:
    """A service without refilling: it takes the requests that wait as one batch, and routes it to its end.

    Args:
        runtime: Routes a batch.
        max_batch: No request is added to a batch of this many samples.
    """

    def __init__(self, runtime: EarlyExitRuntime, max_batch: int) -> None:
        self.runtime, self.max_batch = runtime, max_batch
        self.arrived: queue.SimpleQueue[tuple[Tensor, Future[Routed]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def submit(self, inputs: Tensor) -> Future[Routed]:
        future: Future[Routed] = Future()
        self.arrived.put((inputs, future))
        return future

    def serve(self) -> None:
        while (first := self.arrived.get()) is not None:
            taken, size = [first], len(first[0])
            while size < self.max_batch and not self.arrived.empty():
                if (another := self.arrived.get()) is None:
                    self.arrived.put(None)
                    break
                taken.append(another)
                size += len(another[0])
            routed = self.runtime(torch.cat([inputs for inputs, _ in taken]))
            whole = [values for values in routed if values is not None]  # a plain network's has no BitOPs
            parts = zip(*(values.split([len(inputs) for inputs, _ in taken]) for values in whole), strict=True)
            for (_, future), part in zip(taken, parts, strict=True):
                future.set_result(Routed(*part))

    def __enter__(self) -> "ShrinkingBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.arrived.put(None)
        self.thread.join()


def make_requests(images: Tensor, count: int) -> list[Tensor]:
    sizes = torch.randint(1, LARGEST_REQUEST + 1, (count,)).tolist()
    return [images[torch.randint(0, len(images), (size,))] for size in sizes]


def stream(service: Any, requests: list[Tensor], arrivals: np.ndarray) -> dict[str, float]:
    """Submit every request at its time; its latency counts from that time, even if it could not be handed in then."""
    finished = np.zeros(len(requests))
    futures = []
    start = time.perf_counter()
    for number, (inputs, due) in enumerate(zip(requests, arrivals, strict=True)):
        if (early := start + due - time.perf_counter()) > 0:
            time.sleep(early)
        future = service.submit(inputs)
        future.add_done_callback(lambda _, number=number: finished.__setitem__(number, time.perf_counter() - start))
        futures.append(future)
    wait(futures)
    for future in futures:
        future.result()
    while not finished.all():  # `wait` may return before the last callback has run
        time.sleep(1e-3)
    latency = 1e3 * (finished - arrivals)
    quantiles = {f"p{q}_ms": float(np.quantile(latency, q / 100)) for q in (50, 95, 99)}
    return {**quantiles, "throughput": sum(map(len, requests)) / finished.max()}


def queue_speed(
    network: str = "vit_8x128_17_tokens",
    budget: float = 0.6,
    loads: list[float] | None = None,
    limits_ms: list[float] | None = None,
    seconds: float = 20,
    rounds: int = 3,
    max_batch: int = 32,
    min_batch: int | None = None,
    max_wait: float = 0.05,
    compile: bool = False,
    output: Path | None = None,
) -> None:
    """Latency of two services under the same Poisson streams of requests of 1 to 4 images, in interleaved rounds.

    Args:
        network: One of the benchmark's networks for images.
        budget: As for `speed`.
        loads: Samples offered per second, as fractions of what shrinking batches serve when all requests wait.
        limits_ms: Bounds on p95 latency under which the highest load that each service bore is compared.
        seconds: Length of a stream.
        rounds: Streams of each load.
        max_batch: Of both services.
        min_batch: Of the queue.
        max_wait: Of the queue.
        compile: Compile the steps that both services run.
        output: JSON file.
    """
    made, policy, data = prepare(network, budget)
    runtime = EarlyExitRuntime(made, policy, compile)
    images = sample_batches(data, sample_rows(data, 512), 512, CPU)[0]
    runtime.warm_up(images, (1, max_batch))
    services: dict[str, Callable[[], Any]] = {
        "shrinking": lambda: ShrinkingBatches(runtime, max_batch),
        "refilled": lambda: RebatchingQueue(runtime, max_batch, min_batch, max_wait),
    }

    def serve(kind: str, requests: list[Tensor], arrivals: np.ndarray) -> dict[str, float]:
        with services[kind]() as service:
            return stream(service, requests, arrivals)

    requests = make_requests(images, 2000)
    saturated = {kind: serve(kind, requests, np.zeros(len(requests)))["throughput"] for kind in services}
    random, mean_size = np.random.default_rng(0), (1 + LARGEST_REQUEST) / 2
    rows = []
    for load in loads or [0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]:
        rate = load * saturated["shrinking"]
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in services}
        for _ in range(rounds):
            count = max(1, round(rate * seconds / mean_size))
            arrivals, requests = random.exponential(mean_size / rate, count).cumsum(), make_requests(images, count)
            for kind in services:
                found[kind].append(serve(kind, requests, arrivals))
        medians = {k: {key: float(np.median([s[key] for s in some])) for key in some[0]} for k, some in found.items()}
        rows.append({"load": load, "offered": rate, **medians})
    limits = {f"{limit:g}_ms": best_loads(rows, limit) for limit in limits_ms or [50, 100, 200]}
    sizes = {"max_batch": max_batch, "min_batch": min_batch, "max_wait": max_wait}
    conditions = {"network": network, "compiled": compile, **sizes, "rounds": rounds}
    finish({"device": device_name(CPU), **conditions, "saturated": saturated, "loads": rows, "within": limits}, output)


def best_loads(rows: list[dict[str, Any]], limit: float) -> dict[str, float | None]:
    """Samples per second at the highest load that each service bore with a p95 under the limit, and their ratio."""
    best = {
        kind: max((row["offered"] for row in rows if row[kind]["p95_ms"] <= limit), default=None)
        for kind in ("shrinking", "refilled")
    }
    both = best["shrinking"] is not None and best["refilled"] is not None
    return {**best, "ratio": best["refilled"] / best["shrinking"] if both else None}


def soak(
    minutes: float = 10,
    network: str = "vit_8x128_17_tokens",
    budget: float = 0.6,
    max_batch: int = 32,
    capacity: int = 256,
    output: Path | None = None,
) -> None:
    """Keep the queue full, and compare every result with that of the sample alone.

    Args:
        minutes: How long requests are handed in, each as soon as there is room.
        network: One of the benchmark's networks for images.
        budget: As for `speed`.
        max_batch: Of the queue.
        capacity: Of the queue.
        output: JSON file.
    """
    made, policy, data = prepare(network, budget)
    runtime = EarlyExitRuntime(made, policy)
    images = sample_batches(data, sample_rows(data, 512), 512, CPU)[0]
    one_by_one = zip(*(runtime(image)[:4] for image in images.split(1)), strict=True)
    alone = Routed(*(torch.cat(parts) for parts in one_by_one))
    given, back, different, error = 0, 0, 0, 0.0
    waiting: deque[tuple[Future[Routed], Tensor]] = deque()
    megabytes: list[float] = []

    def collect(until: Callable[[], bool]) -> None:
        nonlocal back, different, error
        while waiting and until():
            future, rows = waiting.popleft()
            routed = future.result()
            back += len(rows)
            different += int((routed.exits != alone.exits[rows]).sum())
            error = max(
                error, (routed.logits - alone.logits[rows])[routed.exits == alone.exits[rows]].abs().max().item()
            )

    start = time.monotonic()
    with RebatchingQueue(runtime, max_batch, capacity=capacity) as service:
        while (passed := time.monotonic() - start) < 60 * minutes:
            rows = torch.randint(0, len(images), (int(torch.randint(1, LARGEST_REQUEST + 1, ())),))
            waiting.append((service.submit(images[rows]), rows))
            given += len(rows)
            collect(lambda: waiting[0][0].done())
            if passed >= 0.6 * minutes * len(megabytes):
                megabytes.append(psutil.Process().memory_info().rss / 1e6)
        collect(lambda: True)
    seconds = time.monotonic() - start
    conditions = {"network": network, "max_batch": max_batch, "capacity": capacity, "minutes": minutes}
    figures = {"samples_given": given, "samples_lost": given - back, "samples_per_second": back / seconds}
    equality = {"exits_different": different, "largest_logit_difference": error}
    growth = float(np.mean(megabytes[-25:]) - np.mean(megabytes[25:50]))
    memory = {"resident_megabytes": megabytes, "megabytes_grown_from_second_to_last_quarter": growth}
    finish({"device": device_name(CPU), **conditions, **figures, **equality, **memory}, output)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli({"speed": speed, "onnx": onnx, "queue": queue_speed, "soak": soak})
