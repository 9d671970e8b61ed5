"""`eenet export RUN`: a folder that `eenet.runtime.load` runs without Lightning or timm, as torch programs or ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from eenet.cli.parsing import Parser
from eenet.cli.runs import add_checkpoint, chosen_point, class_names, example, open_run
from eenet.errors import UserError
from eenet.export import Description, export_network, set_rules
from eenet.runtime.manifest import WEIGHTS, Format


def main(args: list[str]) -> None:
    """Run `eenet export` with some arguments.

    Raises:
        UserError: Wrong arguments, no such run or point, or a network that has no form in the format.
    """
    parser = Parser(prog="eenet export", description="Write a run as a folder of programs and weights.")
    parser.add_argument("run", type=str, help="run folder")
    add_checkpoint(parser)
    parser.add_argument("--out", type=str, required=True, help="new folder")
    parser.add_argument("--format", type=str, default="torch", help=", ".join(get_args(Format)))
    parser.add_argument("--one", action="store_true", help="onnx: a second file for batches of one")
    parser.add_argument("--sets", action="store_true", help="onnx: return the point's conformal sets, too")
    parser.add_argument("--point", type=str | None, default=None, help="a point of `eenet calibrate`, else the run's")
    options = parser.parse_args(args)
    if options.format not in get_args(Format):
        raise UserError("format", options.format, f"must be one of {', '.join(get_args(Format))}")
    out = Path(options.out)
    if out.exists():
        raise UserError("out", str(out), "exists already; give a new folder")
    run = open_run(options.run, checkpoint=options.ckpt_path)
    chosen = chosen_point(run, options.point)
    network = chosen.point.network(run.model.network.cpu())
    names = class_names(run.data)
    about = {"name": chosen.name, "asked": chosen.point.asked, "got": chosen.point.got}
    if chosen.point.chosen_on is not None:
        about["chosen_on"] = chosen.point.chosen_on.to_dict()
    if chosen.temperatures is not None:
        about["temperatures"] = chosen.point.own(chosen.temperatures, run.model.network).tolist()
    prepared = getattr(run.data, "preprocessing", None)
    sets = set_rules(chosen.point, about.get("temperatures")) if options.sets else {}
    description = Description(None if names is None else tuple(names), about, prepared, sets)
    manifest = export_network(network, chosen.point.policy, out, example(run), options.format, description, options.one)
    size, programs = sum(path.stat().st_size for path in out.iterdir()), set(manifest.files) - {WEIGHTS}
    print(f"{len(programs)} program{'s'[: len(programs) > 1]} at {chosen.name}, {size / 1e6:.1f} MB: {out}")
    print(f"use it with: eenet.runtime.load({str(out)!r})")
