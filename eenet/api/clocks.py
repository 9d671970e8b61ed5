"""The clock of a run: what its network's parts take on the processor, and its points on validation samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.utils import _pytree as pytree

from eenet.api.opening import Run, drawn, example, full_batches, opened
from eenet.calibration.chooser import Clock
from eenet.calibration.points import OperatingPoint
from eenet.decoding.network import DecoderNetwork
from eenet.errors import UserError
from eenet.exporting.clock import clock_onnx
from eenet.exporting.contenders import routed_network
from eenet.profile import Seconds
from eenet.runs.clocked import PROFILE, find, keep
from eenet.runtime import EarlyExitRuntime
from eenet.runtime.clock import clock_parts, medians
from eenet.runtime.contenders import device_name

Runtime = Literal["torch", "onnx"]
"""What runs a network: torch, or ONNX Runtime."""

SIZES = (1, 32, 256)
"""Samples per batch where none are asked for."""

BATCHES = 64
"""Of validation samples that a point is timed on, at most."""


def check_runtime(runtime: str) -> None:
    """Raise a `UserError` where a runtime is none."""
    if runtime not in get_args(Runtime):
        raise UserError("runtime", runtime, f"must be one of {', '.join(get_args(Runtime))}")


def use_threads(threads: int | None) -> None:
    """Let an operator take so many processor threads from here on, as before for `None`; a `UserError` below 1."""
    if threads is None:
        return
    if threads < 1:
        raise UserError("threads", threads, "must be at least 1")
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Profiled:
    """What parts of a network take.

    Attributes:
        parts: For each batch size.
        file: The run's file that keeps them.
    """

    parts: list[Seconds]
    file: Path


def time_parts(
    run: Run | str | Path,
    *,
    batch_size: Sequence[int] | None = None,
    threads: int | None = None,
    runtime: Runtime = "torch",
    rounds: int = 5,
    checkpoint: str = "last",
) -> Profiled:
    """Measure what the parts of a run's network take by the clock, which `calibrate` needs for budgets in milliseconds.

    Args:
        run: The run, or its folder.
        batch_size: Samples per batch; `None` for those of 1, 32 and 256 that the validation samples fill.
        threads: Processor threads of an operator, which stay so; `None` for those of this process.
        runtime: What runs them.
        rounds: That count.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: Counts below 1, or no classifier with early exits along one chain.
    """
    check_runtime(runtime)
    if rounds < 1:
        raise UserError("rounds", rounds, "must be at least 1")
    use_threads(threads)
    run = opened(run, checkpoint)
    sizes = filled(len(drawn(run.data, "val", max(SIZES)))) if batch_size is None else batch_size
    return Profiled([measure_profile(run, size, runtime, rounds) for size in sizes], run.file(PROFILE))


def filled(samples: int) -> list[int]:
    """The usual sizes of batches that so many samples fill.

    Example:
        >>> filled(120)
        [1, 32]
    """
    return [size for size in SIZES if size <= samples]


def measure_profile(run: Run, batch_size: int, runtime: Runtime, rounds: int) -> Seconds:
    """Measure what the parts of a run's network take, at its own operating point, and keep it with the run.

    Args:
        run: The run.
        batch_size: Samples of the batch, from the validation split.
        runtime: `torch` or `onnx`.
        rounds: That count.

    Raises:
        UserError: The run is no classifier with early exits along one chain, or the split has fewer samples.
    """
    network = run.model.network
    if isinstance(network, DecoderNetwork):
        raise UserError("run", str(run.folder), "holds a decoder; only classifiers are timed")
    run.model.require_early_exits()
    policy = next(iter(run.model.operating_points().values())).policy
    inputs = validation_batches(run, batch_size, 1)[0]
    name = device_name(torch.device("cpu"))
    if runtime == "onnx":
        found = clock_onnx(network.cpu().eval(), policy, inputs, example(run), rounds, name)
    else:
        found = clock_parts(network.cpu().eval(), policy, inputs, rounds, name)
    keep(run.file(PROFILE), run.checkpoint, found)
    return found


def clock_of(run: Run, batch_size: int, runtime: Runtime, threads: int | None = None) -> Clock:
    """What meets budgets in milliseconds for a run; a `UserError` where its parts were not measured so."""
    check_runtime(runtime)
    use_threads(threads)
    device = device_name(torch.device("cpu"))
    parts = find(run.file(PROFILE), run.checkpoint, runtime, torch.get_num_threads(), batch_size, device)
    batches = validation_batches(run, batch_size, BATCHES)

    def routed(point: OperatingPoint) -> float:
        network = point.network(run.model.network.cpu()).eval()
        if runtime == "onnx":
            runner: Any = routed_network(network, point.policy, example(run))
            runner.tune(batches[0])
        else:
            runner = EarlyExitRuntime(network, point.policy)
        names = [str(number) for number in range(len(batches))]
        cpu = torch.device("cpu")
        taken = [medians({name: runner}, [batch], 3, cpu)[name] for name, batch in zip(names, batches, strict=True)]
        return 1000 * sum(taken) / len(taken) / batch_size

    return Clock(parts, routed)


def validation_batches(run: Run, size: int, most: int) -> list[Any]:
    """Inputs of validation samples on the processor, in full batches, drawn once; a `UserError` where they are few."""
    samples = drawn(run.data, "val", size * most)
    if not 1 <= size <= len(samples):
        total = len(samples.dataset)  # type: ignore[arg-type]
        raise UserError("batch-size", size, f"must be from 1 to the {total} validation samples")
    return [pytree.tree_map(torch.Tensor.cpu, inputs) for inputs, _ in full_batches(run.data, samples, size)]
