"""`eenet export RUN`: a folder that `eenet.load` runs without Lightning or timm, as torch programs or ONNX."""

from eenet.cli.options import add_run
from eenet.parsing.refusals import Parser


def main(args: list[str]) -> None:
    """Run `eenet export` with some arguments.

    Raises:
        UserError: Wrong arguments, no such run or point, or a network that has no form in the format.
    """
    parser = Parser(prog="eenet export", description="Write a run as a folder of programs and weights.")
    add_run(parser)
    parser.add_argument("--out", type=str, required=True, help="new folder")
    parser.add_argument("--format", type=str, default="torch", help="torch, onnx (one file that routes), onnx-steps")
    parser.add_argument("--one", action="store_true", help="onnx: a second file for batches of one")
    parser.add_argument("--sets", action="store_true", help="onnx: return the point's conformal sets, too")
    parser.add_argument("--point", type=str | None, default=None, help="a point of `eenet calibrate`, else the run's")
    options = parser.parse_args(args)
    from eenet.api.exporting import export

    options = vars(options)
    found = export(options.pop("run"), options.pop("out"), checkpoint=options.pop("ckpt_path"), **options)
    programs = f"{found.programs} program{'s'[: found.programs > 1]}"
    print(f"{programs} at {found.point}, {found.size / 1e6:.1f} MB: {found.folder}")
    print(f"use it with: eenet.load({str(found.folder)!r})")
