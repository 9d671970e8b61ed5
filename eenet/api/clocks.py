"""The clock of a run: what its network's parts take on the processor, and its points on validation samples."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import Subset

from eenet.api.exporting import example
from eenet.api.opening import Run
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

RUNTIMES = ("torch", "onnx")

BATCHES = 64
"""Of validation samples that a point is timed on, at most."""


def check_runtime(runtime: str) -> None:
    """Refuse a runtime that is none.

    Raises:
        UserError: It is none.
    """
    if runtime not in RUNTIMES:
        raise UserError("runtime", runtime, f"must be one of {', '.join(RUNTIMES)}")


def measure_profile(run: Run, batch_size: int, runtime: str, rounds: int) -> Seconds:
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


def clock_of(run: Run, batch_size: int, runtime: str) -> Clock:
    """What meets budgets in milliseconds for a run.

    Raises:
        UserError: Its parts were not measured so.
    """
    device, threads = device_name(torch.device("cpu")), torch.get_num_threads()
    profile = find(run.file(PROFILE), run.checkpoint, runtime, threads, batch_size, device)
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

    return Clock(profile, routed)


def validation_batches(run: Run, size: int, most: int) -> list[Any]:
    """Inputs of validation samples on the processor, in full batches, drawn once and for all.

    Raises:
        UserError: A batch needs more samples than there are.
    """
    data = run.data.dataset("val")
    if not 1 <= size <= len(data):
        raise UserError("batch-size", size, f"must be from 1 to the {len(data)} validation samples")
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: size * most].tolist()
    loader = run.data.load(Subset(data, rows), batch_size=size, drop_last=True)
    return [pytree.tree_map(torch.Tensor.cpu, inputs) for inputs, _ in loader]
