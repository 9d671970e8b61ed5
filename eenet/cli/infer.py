"""`eenet infer RUN`: label, probability, exit and MACs of new images or texts, into Parquet, CSV or JSONL."""

from typing import Any

from eenet.cli.options import add_ray, add_run, cluster_of
from eenet.parsing.refusals import Parser


def main(args: list[str]) -> None:
    """Run `eenet infer` with some arguments; a `UserError` for what `eenet.infer` refuses."""
    parser = Parser(prog="eenet infer", description="Route new inputs through a run, batch by batch.")
    add_run(parser)
    parser.add_argument("--input", type=str, required=True, help="folder of images or texts, or a .csv or .jsonl file")
    parser.add_argument(
        "--exported", type=str | None, default=None, help="folder of `eenet export` that routes instead"
    )
    add_ray(parser)
    options = vars(parse(parser, args))
    from eenet.api.inferring import infer

    options["cluster"] = cluster_of(options)
    run, checkpoint = options.pop("run"), options.pop("ckpt_path")
    say(infer(run, checkpoint=checkpoint, **options))


def parse(parser: Parser, args: list[str]) -> Any:
    """Parse arguments, with those of every command that writes rows."""
    parser.add_argument("--output", type=str, required=True, help="new file ending in .parquet, .csv or .jsonl")
    parser.add_argument("--point", type=str | None, default=None, help="a point of `eenet calibrate`, else the run's")
    parser.add_argument("--batch-size", type=int, default=256, help="inputs that are read and routed together")
    return parser.parse_args(args)


def say(found: Any) -> None:
    """Print what was written, and what could not be read."""
    if found.samples is None:
        print(f"was written whole before: {found.output}")
        return
    for row in found.unreadable:
        print(f"unreadable: {row['id']}: {row['problem']}")
    print(f"{found.samples} samples at {found.point}, {len(found.unreadable)} unreadable: {found.output}")
