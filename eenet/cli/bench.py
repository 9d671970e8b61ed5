"""`eenet bench RUN`: what the MACs promise and what the clock shows, on real test samples."""

from eenet.cli.options import add_run, numbers
from eenet.errors import UserError
from eenet.parsing.refusals import Parser


def main(args: list[str]) -> None:
    """Run `eenet bench` with some arguments; a `UserError` where there is no run with early exits to time."""
    parser = Parser(
        prog="eenet bench",
        description="Time the full network, the static exits and the routed network in turns on test samples.",
    )
    add_run(parser)
    parser.add_argument("--batch-size", type=str, help="samples per batch; by default those of 1,32,256 that there are")
    parser.add_argument("--threads", type=int | None, help="processor threads of an operator")
    parser.add_argument("--compile", type=bool, nargs="?", const=True, default=False, help="on a GPU: compile all")
    parser.add_argument("--runtime", type=str, default="torch", help="torch, or onnx: ONNX Runtime for all of them")
    parser.add_argument("--point", type=str, default="all", help="points of `eenet calibrate`, as budget-0.5; or `all`")
    parser.add_argument("--samples", type=int, default=256, help="test samples of each round, as far as there are any")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--profile", action="store_true", help="time the network's parts, for --budget-ms, and no more")
    parser.add_argument("--out", type=str, help="folder of bench.json and bench.png; the run's by default")
    options = vars(parser.parse_args(args))
    from eenet.api.benchmarking import bench
    from eenet.api.clocks import time_parts
    from eenet.reporting import show
    from eenet.reporting.speed import profile_table, speed_table

    run, checkpoint, given = options.pop("run"), options.pop("ckpt_path"), options.pop("batch_size")
    sizes = None if given is None else batch_sizes(given)
    if options.pop("profile"):
        kept = {name: options[name] for name in ("threads", "runtime", "rounds")}
        timed = time_parts(run, batch_size=sizes, checkpoint=checkpoint, **kept)
        for parts in timed.parts:
            show(profile_table(parts))
        print(f"profile: {timed.file}\nuse it with: eenet calibrate {run} --budget-ms MS")
        return
    found = bench(run, batch_size=sizes, checkpoint=checkpoint, **options)
    show(speed_table(found.bench))
    for batch in found.bench["batches"]:
        print(f"overhead when nobody leaves early, batch {batch['batch_size']}: {100 * batch['overhead']:.1f} %")
    print(f"results: {found.file}\nfigure: {found.figure}")


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
