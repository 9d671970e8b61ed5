"""`eenet quickstart`: train, calibrate, test and compare exits on the digits over three seeds, in about a minute."""

import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from eenet.errors import UserError
from eenet.parsing.refusals import Parser

BUDGETS = "0.4,0.5,0.6"


def main(args: list[str]) -> None:
    """Run `eenet quickstart` with some arguments; a `UserError` for no seeds, or a folder that holds runs."""
    parser = Parser(
        prog="eenet quickstart",
        description="Run the commands from a configuration to a comparison in one process, on images inside "
        "scikit-learn: one backbone, and exits on it over several seeds.",
    )
    parser.add_argument("--out", default="runs/quickstart", type=str, help="folder of the runs")
    parser.add_argument("--seeds", default=3, type=int, help="of the exits, from 0")
    options = parser.parse_args(args)
    if options.seeds < 1:
        raise UserError("seeds", options.seeds, "must be at least 1")
    from eenet.cli.main import run

    folder = Path(options.out)
    for line in commands(folder, options.seeds):
        print(f"$ eenet {shlex.join(line)}", flush=True)
        if line[0] in ("fit", "compare"):
            run(line)
            continue
        with open(folder / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log):
            run(line)


def commands(folder: Path, seeds: int) -> Iterator[list[str]]:
    """What is run, as arguments of `eenet`.

    Example:
        >>> [line[0] for line in commands(Path("runs/quickstart"), 1)]
        ['fit', 'fit', 'calibrate', 'test', 'compare']
    """
    backbone, exits = str(folder / "backbone"), [str(folder / f"seed_{seed}") for seed in range(seeds)]
    place = "--trainer.default_root_dir"
    yield ["fit", "--config", "digits/resnet_backbone", place, backbone]
    for seed, run in enumerate(exits):
        own = ["--seed_everything", str(seed), "--model.init_args.backbone_checkpoint", backbone]
        yield ["fit", "--config", "digits/resnet_jei_dnn", place, run, *own]
        yield ["calibrate", run, "--budget", BUDGETS, "--policy", "max_probability"]
        yield ["test", run, "--point", "all"]
    yield ["compare", *exits, "--out", str(folder / "comparison"), "--budgets", "0.4,0.6"]
