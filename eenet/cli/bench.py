"""`eenet bench RUN`: what the MACs promise and what the clock shows, on real test samples."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from datamodules import SplitData
from eenet.calibration import Calibration, OperatingPoint
from eenet.calibration.points import CALIBRATION
from eenet.cli.calibrate import numbers
from eenet.cli.clocks import check_runtime, device_name, measure_profile
from eenet.cli.parsing import Parser
from eenet.cli.runs import Run, add_checkpoint, example, open_run
from eenet.decoding.network import DecoderNetwork
from eenet.errors import UserError
from eenet.export.contenders import onnx_contenders
from eenet.reporting import SCHEMA, make_console, save_figure, write_json
from eenet.reporting.speed import Bench, profile_table, speed_figure, speed_table
from eenet.runs.clocked import PROFILE
from eenet.runtime.contenders import Contender, full_network, nobody_leaves, race, routed_network, static_networks


def main(args: list[str]) -> None:
    """Run `eenet bench` with some arguments.

    Raises:
        UserError: Wrong arguments, or no run with early exits to time.
    """
    parser = Parser(
        prog="eenet bench",
        description="Time the full network, the static exits and the routed network in turns on test samples.",
    )
    parser.add_argument("run", type=str, help="run folder")
    add_checkpoint(parser)
    parser.add_argument("--batch-size", type=str, default="1,32,256", help="samples per batch, as 1,32,256")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="processor threads of an operator")
    parser.add_argument("--compile", type=bool, nargs="?", const=True, default=False, help="compile what is timed")
    parser.add_argument("--runtime", type=str, default="torch", help="torch, or onnx: ONNX Runtime for all of them")
    parser.add_argument("--point", type=str, default="all", help="points of `eenet calibrate`, as budget-0.5; or `all`")
    parser.add_argument("--samples", type=int, default=256, help="test samples of each round, as far as there are any")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--profile", action="store_true", help="time the network's parts, for --budget-ms, and no more")
    parser.add_argument("--out", type=str, help="folder of bench.json and bench.png; the run's by default")
    options = parser.parse_args(args)
    for field in ("threads", "samples", "rounds"):
        if options[field] < 1:
            raise UserError(field, options[field], "must be at least 1")
    check_runtime(options.runtime)
    if options.compile and options.runtime == "onnx":
        raise UserError(
            "compile", True, "compiles torch's steps; ONNX Runtime has its own, so leave one of the two out"
        )
    sizes = batch_sizes(options.batch_size)
    torch.set_num_threads(options.threads)
    run = open_run(options.run, checkpoint=options.ckpt_path)
    if options.profile:
        for size in sizes:
            make_console().print(profile_table(measure_profile(run, size, options.runtime, options.rounds)))
        print(f"profile: {run.file(PROFILE)}\nuse it with: eenet calibrate {run.folder} --budget-ms MS")
        return
    bench = measure(run, sizes, options.compile, options.point, options.samples, options.rounds, options.runtime)
    results, figure = (
        Path(options.out, name) if options.out else run.file(name) for name in ("bench.json", "bench.png")
    )
    write_json(results, bench)
    save_figure(speed_figure(bench), figure)
    make_console().print(speed_table(bench))
    for batch in bench["batches"]:
        print(f"overhead when nobody leaves early, batch {batch['batch_size']}: {100 * batch['overhead']:.1f} %")
    print(f"results: {results}\nfigure: {figure}")


def measure(
    run: Run, sizes: list[int], compile: bool, names: str, samples: int, rounds: int, runtime: str = "torch"
) -> Bench:
    """Time a run; see `eenet.reporting.speed` for what is returned.

    Args:
        run: The run.
        sizes: Samples per batch.
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
    rows = sample_rows(run.data, samples)
    for size in sizes:
        if size > len(rows):
            raise UserError("batch-size", size, f"is more than the {len(rows)} samples; raise --samples or lower it")
    points = operating_points(run, names)
    if runtime == "onnx":
        network.cpu().eval()
        pairs = {name: (point.network(network), point.policy) for name, point in points.items()}
        entrants = onnx_contenders(network, pairs, example(run))
        run.device = torch.device("cpu")
    else:
        entrants = contenders(run, points, compile)
    found = []
    for size in sizes:
        batches = sample_batches(run.data, rows, size, run.device)
        timed = race(entrants, batches, size, rounds, run.device)
        slower = [1 / row["realised_speedup"] - 1 for row in timed if row["kind"] == "overhead"]
        found.append({"batch_size": size, "samples": size * len(batches), "overhead": slower[0], "rows": timed})
    return {
        "schema": SCHEMA,
        "run": str(run.folder),
        "checkpoint": run.checkpoint.name,
        "data": run.data.name,
        "split": "test",
        "device": device_name(run.device),
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


def sample_rows(data: SplitData, samples: int) -> list[int]:
    """Test samples in a random order that is always the same, as many as asked for or as there are."""
    return torch.randperm(len(data.dataset("test")), generator=torch.Generator().manual_seed(0))[:samples].tolist()


def sample_batches(data: SplitData, rows: list[int], size: int, device: torch.device) -> list[Any]:
    """Inputs of some test samples on a device, in full batches that are collated as the data collate them."""
    loader = data.load(Subset(data.dataset("test"), rows), batch_size=size, drop_last=True)
    return [data.transfer_batch_to_device(batch, device, 0)[0] for batch in loader]


def batch_sizes(text: str) -> list[int]:
    """Whole numbers between commas, each once.

    Raises:
        UserError: Something else is there.

    Example:
        >>> batch_sizes("1,32")
        [1, 32]
    """
    values = numbers("batch-size", text)
    if not values or any(value < 1 or value % 1 for value in values) or len(set(values)) < len(values):
        raise UserError("batch-size", text, "must be different whole numbers from 1, as 1,32,256")
    return [int(value) for value in values]
