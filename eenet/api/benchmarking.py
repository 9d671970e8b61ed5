"""What the MACs promise and what the clock shows, on real test samples of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eenet.api.clocks import Runtime, check_runtime, filled, use_threads
from eenet.api.opening import Run, drawn, example, full_batches, opened
from eenet.calibration import Calibration, OperatingPoint
from eenet.calibration.points import CALIBRATION
from eenet.decoding.network import DecoderNetwork
from eenet.errors import UserError
from eenet.exporting.contenders import onnx_contenders
from eenet.files import check_writable
from eenet.reporting import SCHEMA, save_figure, write_json
from eenet.reporting.speed import Bench, speed_figure
from eenet.runtime.contenders import (
    Contender,
    device_name,
    full_network,
    nobody_leaves,
    race,
    routed_network,
    static_networks,
)


@dataclass(frozen=True)
class Benched:
    """What was timed.

    Attributes:
        bench: See `eenet.reporting.speed`.
        file: Where it was written.
        figure: Its figure.
    """

    bench: Bench
    file: Path
    figure: Path


def bench(
    run: Run | str | Path,
    *,
    batch_size: Sequence[int] | None = None,
    threads: int | None = None,
    compile: bool = False,
    runtime: Runtime = "torch",
    point: str = "all",
    samples: int = 256,
    rounds: int = 5,
    out: str | Path | None = None,
    checkpoint: str = "last",
) -> Benched:
    """Time the full network, the static exits and the routed network in turns on test samples.

    Args:
        run: The run, or its folder.
        batch_size: Samples per batch, each size once; `None` for those of 1, 32 and 256 that the samples fill.
        threads: Processor threads of an operator, which stay so; `None` for those of this process.
        compile: Compile what is timed, on a GPU.
        runtime: What runs all of them: `torch`, or `onnx` for ONNX Runtime.
        point: Points of `calibrate` between commas, or `all`.
        samples: Test samples of each round, as far as there are any.
        rounds: Rounds that count, after one that does not.
        out: Folder of `bench.json` and `bench.png`; the run's by default.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: Counts below 1, no such run or point, or no early exits to time.
    """
    for field, count in (("samples", samples), ("rounds", rounds)):
        if count < 1:
            raise UserError(field, count, "must be at least 1")
    given = (1,) if batch_size is None else batch_size
    if not given or min(given) < 1 or len(set(given)) < len(given):
        raise UserError("batch-size", list(given), "must be different whole numbers from 1, as 1,32,256")
    check_runtime(runtime)
    if compile and runtime == "onnx":
        raise UserError("compile", True, "compiles torch's steps, which ONNX Runtime does not run; give one of the two")
    use_threads(threads)
    run = opened(run, checkpoint)
    if compile and run.device.type == "cpu":
        raise UserError("compile", True, "is for GPUs; on a CPU ONNX Runtime is faster throughout: give --runtime onnx")
    file, figure = (Path(out, name) if out else run.file(name) for name in ("bench.json", "bench.png"))
    check_writable(file.parent)
    found = measure(run, batch_size, compile, point, samples, rounds, runtime)
    write_json(file, found)
    save_figure(speed_figure(found), figure)
    return Benched(found, file, figure)


def measure(
    run: Run,
    sizes: Sequence[int] | None,
    compile: bool,
    names: str,
    samples: int,
    rounds: int,
    runtime: Runtime = "torch",
) -> Bench:
    """Time a run; see `eenet.reporting.speed` for what is returned.

    Args:
        run: The run.
        sizes: Samples per batch; `None` for the usual ones that the samples fill.
        compile: Compile the full network, the static exits and the routed network alike.
        names: Operating points, see `operating_points`.
        samples: Test samples of a round, as far as there are any.
        rounds: Rounds that count.
        runtime: `torch` or `onnx`.

    Raises:
        UserError: The run is no classifier with early exits, there is no such point, or a batch needs more samples than
            there are.
    """
    network, model = run.model.network, run.model
    if isinstance(network, DecoderNetwork):
        raise UserError("run", str(run.folder), f"holds a {type(network).__name__}; only classifiers are timed")
    model.require_early_exits()
    rows = drawn(run.data, "test", samples)
    sizes = filled(len(rows)) if sizes is None else sizes
    for size in sizes:
        if size > len(rows):
            raise UserError("batch-size", size, f"is more than the {len(rows)} samples; raise --samples or lower it")
    points, device = operating_points(run, names), run.device
    if runtime == "onnx":
        network.cpu().eval()
        pairs = {name: (point.network(network), point.policy) for name, point in points.items()}
        entrants, device = onnx_contenders(network, pairs, example(run)), torch.device("cpu")
    else:
        entrants = contenders(run, points, compile)
    found = []
    for size in sizes:
        loader = full_batches(run.data, rows, size)
        batches = [run.data.transfer_batch_to_device(batch, device, 0)[0] for batch in loader]
        timed = race(entrants, batches, size, rounds, device)
        slower = [1 / row["realised_speedup"] - 1 for row in timed if row["kind"] == "overhead"]
        found.append({"batch_size": size, "samples": size * len(batches), "overhead": slower[0], "rows": timed})
    return {
        "schema": SCHEMA,
        "run": str(run.folder),
        "checkpoint": run.checkpoint.name,
        "data": run.data.name,
        "split": "test",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "runtime": runtime,
        "compiled": compile,
        "rounds": rounds,
        "warm_up_rounds": 1,
        "batches": found,
    }


def contenders(run: Run, points: dict[str, OperatingPoint], compile: bool) -> list[Contender]:
    """The full network, static ones, the network routed at every point, and routed when nobody leaves."""
    network = run.model.network
    routed = [routed_network(name, point.network(network), point.policy, compile) for name, point in points.items()]
    static = static_networks(network, compile)
    return [full_network(network, compile), *static, *routed, nobody_leaves(network, compile)]


def operating_points(run: Run, names: str) -> dict[str, OperatingPoint]:
    """Points that `eenet calibrate` chose, or the run's own where it was not calibrated.

    Args:
        run: The run.
        names: Separated by commas, or `all`.

    Raises:
        UserError: There is no such point, or it was not chosen for the run's weights and data.
    """
    if run.file(CALIBRATION).is_file():
        found = Calibration.of(run.folder, run.checkpoint, names)
    else:
        found = Calibration("", 0, torch.empty(0), run.model.operating_points())
    points = found.choose(names)
    for name, point in points.items():
        run.model.require_chosen(name, point, run.split, run.folder)
    return points
