"""Time and resident memory of calibrating a large split, on synthetic logits.

    python benchmarks/calibration.py --samples 128000 --exits 13 --classes 1000

Writes the logits of exits that know more the later they are to a temporary file, as `eenet calibrate` does, and takes
temperatures, points, quantiles of conformal sets and a certificate from it. Prints JSON with the seconds of processor
time of each part and the peak of the process's resident memory.
"""

import json
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import auto_cli
from torch.nn import functional as F

from eenet.calibration import (
    ConformalMode,
    LogitFile,
    Scored,
    conformal_quantiles,
    fit_scheduler,
    fit_temperatures,
    policy_for_budget,
    policy_for_risk,
    read_exits,
)
from eenet.gates import ConfidenceGate
from eenet.policies import Threshold

BATCH = 256


def main(
    samples: int = 128_000, exits: int = 13, classes: int = 1000, scheduler: bool = False, folder: Path = Path(".")
) -> None:
    """Calibrate once.

    Args:
        samples: Of the split.
        exits: Of the network.
        classes: Of the data.
        scheduler: Fit the scheduler's gate, too.
        folder: Of the temporary file, where TMPDIR is not set.
    """
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        seconds[part] = round(time.process_time() - start, 2)
        peaks[part] = resident()

    started = resident()
    with timed("synthesis and writing"):
        logits, labels = LogitFile(samples, folder), torch.arange(samples) * 7919 % classes
        noise = torch.randn(BATCH, exits, classes, generator=torch.Generator().manual_seed(0))
        for number, batch in enumerate(labels.split(BATCH)):
            logits.append(synthetic(batch, noise.roll(number, dims=2)[: len(batch)]))
    with timed("temperatures"):
        temperatures = fit_temperatures(logits, labels)
    with timed("predictions, scores and true classes"):
        known = read_exits(logits, labels, ConfidenceGate(exits - 1))
    fractions = torch.linspace(1 / exits, 1, exits, dtype=torch.float64)
    scored = Scored(known.predictions, known.scores, known.predictions == labels[:, None], fractions)
    with timed("a budget and its sets"):
        point = policy_for_budget(Threshold([0.0] * (exits - 1)), scored, 0.5)
        for mode in get_args(ConformalMode):
            conformal_quantiles(known.true_scores, scored.exits(point), 0.1, mode, labels=labels, num_classes=classes)
    with timed("a certificate"):
        policy_for_risk(point, scored, 0.02, 0.1)
    if scheduler:
        with timed("scheduler"):
            fit_scheduler(logits, labels)
    report = {
        "samples": samples,
        "exits": exits,
        "classes": classes,
        "seconds": seconds,
        "temperature_microseconds_per_sample": round(1e6 * seconds["temperatures"] / samples, 1),
        "temperatures": temperatures.values.tolist(),
        "resident_mb_at_start": started,
        "peak_resident_mb_until": peaks,
    }
    print(json.dumps(report, indent=2))


def synthetic(labels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Logits `(batch, exits, classes)` that are overconfident, more so at later exits."""
    exits, classes = noise.shape[1:]
    draw = torch.Generator().manual_seed(int(labels[0]))
    signal = torch.linspace(4, 18, exits)[:, None] * torch.rand(len(labels), 1, 1, generator=draw)
    logits = noise + signal * F.one_hot(labels, classes)[:, None]
    return logits * torch.linspace(0.5, 3, exits)[:, None]


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli(main)
