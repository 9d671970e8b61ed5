"""`eenet predict RUN`: what `infer` writes, of the run's own test split."""

from eenet.cli.infer import parse, say
from eenet.cli.options import add_run
from eenet.parsing.refusals import Parser


def main(args: list[str]) -> None:
    """Run `eenet predict` with some arguments.

    Raises:
        UserError: Wrong arguments, no such run, point or split, or an output that cannot be used.
    """
    parser = Parser(prog="eenet predict", description="Route a split of a run's own data.")
    add_run(parser)
    parser.add_argument("--split", type=str, default="test", help="train, val or test")
    options = vars(parse(parser, args))
    from eenet.api.inferring import predict

    run, checkpoint = options.pop("run"), options.pop("ckpt_path")
    say(predict(run, checkpoint=checkpoint, **options))
