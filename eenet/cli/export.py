"""`eenet export RUN`: a folder that `eenet.load` runs without Lightning or timm, as torch programs or ONNX."""

from typing import TYPE_CHECKING

from eenet.cli.options import add_run
from eenet.errors import some
from eenet.parsing.refusals import Parser

if TYPE_CHECKING:
    from eenet.api.integers import IntegerPoint


def main(args: list[str]) -> None:
    """Run `eenet export` with some arguments; a `UserError` for what `eenet.export` refuses."""
    parser = Parser(prog="eenet export", description="Write a run as a folder of programs and weights.")
    add_run(parser)
    parser.add_argument("--out", type=str, required=True, help="new folder")
    parser.add_argument("--format", type=str, default="torch", help="torch, onnx (one file that routes), onnx-steps")
    parser.add_argument("--one", action="store_true", help="onnx: a second file for batches of one")
    parser.add_argument("--sets", action="store_true", help="onnx: return the point's conformal sets, too")
    parser.add_argument("--int8", action="store_true", help="onnx: compute in int8, thresholds chosen again for it")
    parser.add_argument(
        "--int8-samples", type=int | None, help="training samples for the ranges of int8, by default 256"
    )
    parser.add_argument("--point", type=str | None, default=None, help="a point of `eenet calibrate`, else the run's")
    options = parser.parse_args(args)
    from eenet.api.exporting import export

    options = vars(options)
    found = export(options.pop("run"), options.pop("out"), checkpoint=options.pop("ckpt_path"), **options)
    programs = f"{found.programs} program{'s'[: found.programs > 1]}"
    print(f"{programs} at {found.point}, {found.size / 1e6:.1f} MB: {found.folder}")
    if found.integers is not None:
        print("\n".join(say_integers(found.integers)))
    print(f"use it with: eenet.load({str(found.folder)!r})")


def say_integers(found: "IntegerPoint") -> list[str]:
    """What int8 arithmetic gave, beside floating point."""
    about, got = found.about, found.chosen.point.got
    before = about["float_got"]
    left = f"; {len(about['left'])} stay in floating point: {some(about['left'])}" if about["left"] else ""
    speeds = ", ".join(f"{value:.2f} in a batch of {size}" for size, value in found.speedups.items())
    slow = max(found.speedups.values()) < 1
    return [
        f"int8: {about['layers']} layers, ranges of {about['samples']} training samples{left}",
        f"full network on validation: {about['accuracy']:.2%}, {about['float_accuracy']:.2%} in floating point",
        f"point on validation: {got['accuracy']:.2%} at {got['macs_fraction']:.3f} of the MACs, "
        f"{before['accuracy']:.2%} at {before['macs_fraction']:.3f} in floating point",
        f"times as fast as floating point, full network on this processor: {speeds}"
        + ("; int8 does not pay here (it needs VNNI or the like)" if slow else ""),
    ]
