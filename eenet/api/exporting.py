"""A run as a folder that `eenet.load` runs without Lightning or timm."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from eenet.api.integers import IntegerPoint, choose_integers
from eenet.api.opening import Chosen, Run, chosen_point, class_names, example, opened
from eenet.decoding.network import DecoderNetwork
from eenet.errors import UserError
from eenet.exporting import Description, export_network, set_rules
from eenet.runtime.manifest import WEIGHTS, Format


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: The new folder.
        point: Name of the operating point.
        programs: Number of programs.
        size: Bytes of all files.
        integers: What int8 arithmetic gave, where it was asked for.
    """

    folder: Path
    point: str
    programs: int
    size: int
    integers: IntegerPoint | None = None


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    format: Format = "torch",
    point: str | None = None,
    one: bool = False,
    sets: bool = False,
    int8: bool = False,
    int8_samples: int | None = None,
    checkpoint: str = "last",
) -> Exported:
    """Write a run as a folder of programs and weights.

    Args:
        run: The run, or its folder.
        out: New folder.
        format: `torch` or `onnx-steps` for a program per step, `onnx` for one file that routes.
        point: A point of `calibrate`, else the run's own.
        one: Beside one ONNX file that routes, write a second for batches of one.
        sets: Let that file return the point's conformal sets, too.
        int8: Let that file compute in int8, with the point chosen again on what int8 gives on validation.
        int8_samples: Training samples that the ranges of int8 are taken from; 256 by default.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: No such run or point, a folder that exists, a decoder, or a network that has no form in the format.
    """
    if format not in get_args(Format):
        raise UserError("format", format, f"must be one of {', '.join(get_args(Format))}")
    folder = Path(out)
    if folder.exists():
        raise UserError("out", str(folder), "exists already; give a new folder")
    if int8 and format != "onnx":
        raise UserError("int8", True, f"is for one ONNX file that routes, not for {format}; give --format onnx")
    if int8_samples is not None and not int8:
        raise UserError("int8-samples", int8_samples, "are for the ranges of --int8; give it, or leave them out")
    run = opened(run, checkpoint, read_data=None)
    if isinstance(run.model.network, DecoderNetwork):
        raise UserError("run", str(run.folder), "holds a decoder, which has no exported form; `eenet generate` runs it")
    chosen = chosen_point(run, point)
    about = about_point(run, chosen)
    with ExitStack() as held:
        made = choose_integers(run, chosen, 256 if int8_samples is None else int8_samples, held) if int8 else None
        if made is not None:
            chosen, exact = made.chosen, about
            about = about_point(run, chosen)
            kept = {key: exact[key] for key in exact if exact[key] != about.get(key)}
            about["integers"] = {**made.about, "float": kept}
        network = chosen.point.network(run.model.network.cpu())
        names = class_names(run.data)
        prepared = getattr(run.data, "preprocessing", None)
        rules = set_rules(chosen.point, about.get("temperatures")) if sets else {}
        description = Description(None if names is None else tuple(names), about, prepared, rules)
        integers = None if made is None else made.integers
        policy = chosen.point.policy
        manifest = export_network(network, policy, folder, example(run), format, description, one, integers)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(folder, chosen.name, len(set(manifest.files) - {WEIGHTS}), size, made)


def float_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of the point as it was chosen in floating point."""
    found = {key: value for key, value in point.items() if key != "integers"}
    return found | (point.get("integers") or {}).get("float", {})


def about_point(run: Run, chosen: Chosen) -> dict[str, Any]:
    """What an exported folder says of its operating point: which it is, and of which weights."""
    about: dict[str, Any] = {"name": chosen.name, "asked": chosen.point.asked, "got": chosen.point.got}
    if chosen.point.kept is not None:
        about["kept"] = chosen.point.kept
    about["weights"] = run.model.network_digest()
    if chosen.point.chosen_on is not None:
        about["chosen_on"] = chosen.point.chosen_on.to_dict()
    if chosen.temperatures is not None:
        about["temperatures"] = chosen.point.own(chosen.temperatures, run.model.network).tolist()
    return about
