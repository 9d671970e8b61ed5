"""`eenet sweep`: a grid of runs, each in processes of its own, that goes on where it was killed.

With `features: disk` in the configuration the runs share one store: the first extracts, the others wait for it.
"""

import csv
import fcntl
import io
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from eenet.cli.options import add_ray, cluster_of
from eenet.cli.sweep_choice import Option, check_figure, choose, validated
from eenet.cli.sweep_pools import Asked, Ended, pool, tasks
from eenet.errors import NOT_MET, UserError
from eenet.parsing.given import plain
from eenet.parsing.refusals import Parser

COMMAND = [sys.executable, "-m", "eenet"]
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece", "macs_fraction")
"""Columns of the table that come from each operating point."""

RECORD = "sweep.json"
"""File of the sweep's folder, and of each run's, that says what was run there."""


@dataclass(frozen=True)
class Run:
    """One point of the grid.

    Attributes:
        folder: Run folder.
        values: What is varied, by field, and `seed`.
        args: Arguments of `eenet fit` beside the folder.
    """

    folder: Path
    values: dict[str, Any]
    args: list[str]

    @property
    def record(self) -> list[str]:
        """What makes it, beside the configurations."""
        return [text for text in self.args if not text.startswith("--config=")]


def main(args: list[str]) -> None:
    """Run `eenet sweep` with some arguments.

    Raises:
        UserError: Wrong arguments, or the folder holds a sweep of other configurations.
        SystemExit: With status 1 if a run failed, or its validation split cannot meet a wish of `--calibrate`.
    """
    parser = Parser(prog="eenet sweep", description="Train and test a grid of runs.")
    parser.add_argument("--config", action="append", required=True, type=str, help="configuration of `eenet fit`")
    parser.add_argument(
        "--vary", action="append", default=[], type=str, help="field=value,value,...; several give all combinations"
    )
    parser.add_argument("--seeds", default=1, type=int, help="runs of each combination, with seeds from 0")
    parser.add_argument("--folder", default="runs/sweep", type=str, help="folder of the runs and the table")
    parser.add_argument(
        "--calibrate",
        action="append",
        default=[],
        type=str,
        help="arguments of `eenet calibrate` for every run, in quotes; the test then uses its points",
    )
    parser.add_argument(
        "--choose",
        type=str,
        help="figure of the validation, as val/accuracy or val/nll/exit_*, that chooses one combination: the first "
        "of those within the best one's spread over seeds. Only its runs are tested",
    )
    parser.add_argument("--processes", default=cores(), type=int, help="runs at a time on this machine")
    add_ray(parser)
    options = parser.parse_args(args)
    for field, count in (("seeds", options.seeds), ("processes", options.processes)):
        if count < 1:
            raise UserError(field, count, "must be at least 1")
    for text in options.calibrate:
        try:
            shlex.split(text)
        except ValueError as error:
            raise UserError("calibrate", text, f"cannot be split into arguments: {error}") from error
    cluster = cluster_of(vars(options))
    folder = Path(options.folder)
    runs = list(make_runs(options.config, options.vary, options.seeds, folder))
    if options.choose:
        check_figure(options.choose, options.config, dict(map(parse_values, options.vary)))
    guard(folder, options.config, options.calibrate, runs)
    trust_own(options.config)
    from eenet.progress import tracked

    threads = cluster.threads if cluster else max(1, cores() // min(options.processes, len(runs)))
    place = pool(execute, options.processes) if cluster is None else tasks(execute, cluster, folder)
    with place as execute_all:

        def all_of(some: list[Run], tested: bool) -> list[bool]:
            finished: dict[int, bool] = {}
            ended = execute_all(some, Asked(threads, options.calibrate, tested))
            for number, (done, line) in tracked(ended, "runs", len(some)):
                finished[number] = done
                if line:
                    print(line, file=sys.stdout if done else sys.stderr)
            return [finished[number] for number in range(len(some))]

        if options.choose:
            runs = choice(runs, all_of(runs, False), options.choose)
        finished = all_of(runs, True)
    report(folder, [run for run, done in zip(runs, finished, strict=True) if done])
    unmet = [f"{run.folder.name}: {line}" for run in runs for line in not_met(run)]
    print(*unmet, sep="\n", end="\n" if unmet else "", file=sys.stderr)
    if unmet or not all(finished):
        raise SystemExit(1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def parse_values(vary: str) -> tuple[str, list[Any]]:
    """Field and values of a `--vary` argument; the values are the items of a YAML list.

    Raises:
        UserError: It is not `field=value,value,...`.

    Example:
        >>> parse_values("model.init_args.tradeoff=0.1,1")
        ('model.init_args.tradeoff', [0.1, 1])
    """
    field, _, text = vary.partition("=")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        values = []
    if not field or not values:
        raise UserError("vary", vary, "must look like model.init_args.tradeoff=0.01,0.1,1")
    return field, values


def make_runs(configs: list[str], vary: list[str], seeds: int, folder: Path) -> Iterator[Run]:
    """The points of the grid; a run is named by the fields that have several values, and its seed.

    Raises:
        UserError: A configuration is not there, a field is varied twice, or two runs would have one folder.
    """
    for config in configs:
        if not Path(config).is_file():
            raise UserError("config", config, "there is no such file")
    fields = dict(map(parse_values, vary))
    if len({*map(plain, fields)}) < len(vary):
        raise UserError("vary", vary, "varies a field twice; give all its values at once")
    if "seed_everything" in fields:
        raise UserError("vary", vary, "the seed of a run is varied by --seeds")
    names, folders = short_names([field for field in fields if len(fields[field]) > 1]), set()
    shared = [f"--config={config}" for config in configs]
    for *point, seed in product(*fields.values(), range(seeds)):
        values = dict(zip(fields, point, strict=True))
        args = [
            f"--{field}={value if isinstance(value, str) else json.dumps(value)}" for field, value in values.items()
        ]
        varied = {**{name: values[field] for field, name in names.items()}, "seed": seed}
        name = ",".join(f"{key}={value}" for key, value in varied.items()).replace("/", "_")
        if name in folders:
            raise UserError("vary", vary, f"gives two runs the folder {folder / name}; give values that differ")
        folders.add(name)
        yield Run(folder / name, varied, [*shared, *args, f"--seed_everything={seed}"])


def short_names(fields: list[str]) -> dict[str, str]:
    """Fields by the last parts that tell them from each other and from the seed.

    Example:
        >>> short_names(["model.init_args.tradeoff", "data.init_args.seed"])
        {'model.init_args.tradeoff': 'tradeoff', 'data.init_args.seed': 'data.seed'}
        >>> list(short_names(["model.optimizer.init_args.lr", "model.weight_optimizer.init_args.lr"]).values())
        ['optimizer.lr', 'weight_optimizer.lr']
    """
    parts = {field: field.replace(".init_args.", ".").split(".") for field in fields}
    ends = Counter(".".join(found[-size:]) for found in parts.values() for size in range(1, len(found) + 1))
    ends["seed"] += 1
    return {
        field: next(
            (end for size in range(1, len(found)) if ends[end := ".".join(found[-size:])] == 1), ".".join(found)
        )
        for field, found in parts.items()
    }


def guard(folder: Path, configs: list[str], calibrate: list[str], runs: list[Run]) -> None:
    """Refuse to mix runs of different configurations or calibrations in one folder.

    Raises:
        UserError: The folder's runs are of other configurations, or one that is named alike had other values.
    """
    from eenet.reading import read_json
    from eenet.reporting import write_json

    texts = [Path(config).read_text(encoding="utf-8", errors="backslashreplace") for config in configs]
    wanted = {"configs": texts, "calibrate": calibrate}
    record = folder / RECORD
    if record.is_file() and read_json(record) != wanted:
        problem = f"holds runs of another configuration or calibration than {configs} {calibrate}; choose another"
        raise UserError("folder", str(folder), problem)
    for run in runs:
        own = run.folder / RECORD
        if own.is_file() and (before := read_json(own)) != run.record:
            problem = f"was run with {shlex.join(before)}; choose another --folder"
            raise UserError("vary", shlex.join(run.record), f"{run.folder} {problem}")
    write_json(record, wanted)


def trust_own(configs: list[str]) -> None:
    """Let the commands that open the sweep's runs build the classes of the user's own configurations.

    Raises:
        UserError: One is the configuration of a run that may come from elsewhere, with a class that is not trusted.
    """
    from eenet.runs import load_config
    from eenet.runs.paths import is_own
    from eenet.runs.trust import class_paths, trust

    for config in configs:
        values = load_config(Path(config))
        for _, text in () if is_own(values) else class_paths(values):
            trust(str(text))


def choice(runs: list[Run], finished: list[bool], figure: str) -> list[Run]:
    """The runs of the combination that a figure of the validation chooses; prints what all have.

    Raises:
        SystemExit: With status 1 if a run failed.
        UserError: A run has no such figure.
    """
    from rich.table import Table

    from eenet.reporting import show

    if not all(finished):
        raise SystemExit(1)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.folder.name.rpartition("seed=")[0], []).append(run)
    names = [name for name in runs[0].values if name != "seed"]
    tried = {
        key: Option(
            {name: group[0].values[name] for name in names}, tuple(validated(run.folder, figure) for run in group)
        )
        for key, group in groups.items()
    }
    chosen = choose(tried.values(), figure)
    table = Table(*names, figure, "spread", "")
    for option in tried.values():
        row = [str(value) for value in option.values.values()]
        table.add_row(*row, f"{option.mean:.4f}", f"{option.spread:.4f}", "chosen" if option is chosen else "")
    show(table)
    return next(group for key, group in groups.items() if tried[key] is chosen)


def execute(asked: Asked, run: Run) -> Ended:
    """Train, calibrate and test one run, unless it is finished and has results; goes on from its last checkpoint.

    Where it is not to be tested, it is only trained.

    Wishes that cannot be met do not stop it: the test takes the points of the others, or the run's own where none is.
    Its lock belongs to the processes that it starts, too: if this one is killed, a new sweep waits for them.
    """
    from eenet.calibration.points import CALIBRATION
    from eenet.reporting import write_json
    from eenet.runs import RunFolder

    threads, calibrate, tested = asked
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / RECORD, run.record)
    quiet = "--trainer.enable_progress_bar=false"
    fit = ["fit", *run.args, f"--trainer.default_root_dir={run.folder}", "--ckpt_path=auto", quiet]
    calibrations = [["calibrate", str(run.folder), *shlex.split(text)] for text in calibrate]
    test = ["test", f"--config={run.folder / 'config.yaml'}", quiet]
    with open(run.folder / "lock", "wb") as lock, open(run.folder / "log.txt", "ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if RunFolder(run.folder).finished and (not tested or (run.folder / "results.json").is_file()):
            return Ended(True, "")
        for args in (fit, *calibrations, test) if tested else (fit,):
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            said = len(not_met(run))
            if args is test and calibrate and (run.folder / CALIBRATION).is_file():
                args = [*test, "--point=all"]
            ended = subprocess.run(
                [*COMMAND, *args], env=environment, stdout=log, stderr=log, pass_fds=[lock.fileno()], check=False
            )
            if ended.returncode and not (ended.returncode == 1 and len(not_met(run)) > said):
                return Ended(False, f"failed: {run.folder.name}; see {run.folder / 'log.txt'}")
            if args is fit and not RunFolder(run.folder).finished:
                return Ended(False, f"ended before it was finished: {run.folder.name}; sweep again to continue it")
    return Ended(True, f"{'done' if tested else 'trained'}: {run.folder.name}")


def not_met(run: Run) -> list[str]:
    """What `eenet calibrate` has said in a run's log that it could not meet."""
    log = run.folder / "log.txt"
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return [line for line in said.splitlines() if line.startswith(NOT_MET)]


def report(folder: Path, runs: list[Run]) -> None:
    """Write `sweep.csv`, a row for each run and operating point, and print it; say which points are not chosen."""
    from rich.table import Table

    from eenet.reporting import chosen_rows, not_chosen_lines, read_results, show, write_text

    found = [(run, read_results(run.folder / "results.json")) for run in runs]
    rows = [
        {**run.values, "operating_point": point["name"], **{name: point.get(name, float("nan")) for name in FIGURES}}
        for run, results in found
        for point in chosen_rows(results)
    ]
    for run, results in found:
        for line in not_chosen_lines(results["operating_points"]):
            print(f"{run.folder.name}: {line}")
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", text.getvalue())
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.4f}" if key in FIGURES else str(value) for key, value in row.items()))
    show(table)
    print(f"table: {folder / 'sweep.csv'}")
