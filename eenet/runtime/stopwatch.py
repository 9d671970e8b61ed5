"""Interleaved, paired timing: contenders take turns on every batch, so that a busy machine disturbs all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch


class Times(NamedTuple):
    """Seconds of every batch in every round, `(rounds, batches)`.

    Attributes:
        wall: Of the clock, until the device has finished.
        cpu: Of the processor, summed over the threads of the process; other processes do not count.
    """

    wall: np.ndarray
    cpu: np.ndarray


@torch.no_grad()
def time_rounds(
    contenders: Mapping[str, Callable[[Any], Any]],
    batches: Sequence[Any],
    rounds: int,
    device: torch.device,
    warm_up: int = 1,
    in_a_row: int = 1,
) -> dict[str, Times]:
    """Time contenders on the same batches.

    Args:
        contenders: What is timed, by name.
        batches: Each is run once per round by everyone, in an order that turns by one from turn to turn.
        rounds: Rounds that count.
        device: Waited for before a clock is read.
        warm_up: Rounds before them that do not count.
        in_a_row: Batches of a turn. At one, everyone finds the caches full of the others' weights, which tells where a
            batch is one sample; a service of one network does not.

    Returns:
        Times by name.
    """
    names = list(contenders)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    turns = [batches[first : first + in_a_row] for first in range(0, len(batches), in_a_row)]
    for number, some in enumerate(turns * (warm_up + rounds)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for batch in some:
                synchronise(device)
                wall, cpu = time.perf_counter(), time.process_time()
                contenders[name](batch)
                synchronise(device)
                if number >= warm_up * len(turns):
                    seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    shaped = {name: np.array(values).reshape(rounds, len(batches), 2) for name, values in seconds.items()}
    return {name: Times(values[..., 0], values[..., 1]) for name, values in shaped.items()}


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed_row(name: str, times: Times, full: Times, batch_size: int, theoretical: float) -> dict[str, Any]:
    """What is reported of one contender.

    Args:
        name: Of the contender.
        times: Its times.
        full: Those of the full network in the same rounds.
        batch_size: Samples per batch.
        theoretical: MACs of the full network divided by the contender's mean MACs on these batches.

    Returns:
        `name`; `p50_ms` and `p95_ms` of a batch; `throughput`, samples per second of the median round;
        `theoretical_speedup`; `realised_speedup`, the median over the rounds of the full network's time for all batches
        divided by this one's; `ratio`, realised / theoretical; `cpu_speedup` and `cpu_ratio`, the same from processor
        time.

    Example:
        >>> full = Times(np.array([[2.0, 4.0]]), np.array([[2.0, 4.0]]))
        >>> half = Times(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))
        >>> row = speed_row("half", half, full, 3, 2.5)
        >>> row["throughput"], row["realised_speedup"], row["ratio"]
        (2.0, 2.0, 0.8)
    """
    rounds = times.wall.sum(1)
    realised = float(np.median(full.wall.sum(1) / rounds))
    on_cpu = float(np.median(full.cpu.sum(1) / times.cpu.sum(1)))
    return {
        "name": name,
        "p50_ms": 1e3 * float(np.median(times.wall)),
        "p95_ms": 1e3 * float(np.quantile(times.wall, 0.95)),
        "throughput": batch_size * times.wall.shape[1] / float(np.median(rounds)),
        "theoretical_speedup": theoretical,
        "realised_speedup": realised,
        "ratio": realised / theoretical,
        "cpu_speedup": on_cpu,
        "cpu_ratio": on_cpu / theoretical,
    }
