"""A run as a folder that `eenet.load` runs without Lightning or timm."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from eenet.api.opening import Chosen, Run, chosen_point, class_names, example, opened
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
    """

    folder: Path
    point: str
    programs: int
    size: int


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    format: Format = "torch",
    point: str | None = None,
    one: bool = False,
    sets: bool = False,
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
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: No such run or point, a folder that exists, or a network that has no form in the format.
    """
    if format not in get_args(Format):
        raise UserError("format", format, f"must be one of {', '.join(get_args(Format))}")
    folder = Path(out)
    if folder.exists():
        raise UserError("out", str(folder), "exists already; give a new folder")
    run = opened(run, checkpoint, read_data=None)
    chosen = chosen_point(run, point)
    network = chosen.point.network(run.model.network.cpu())
    names = class_names(run.data)
    about = about_point(run, chosen)
    prepared = getattr(run.data, "preprocessing", None)
    rules = set_rules(chosen.point, about.get("temperatures")) if sets else {}
    description = Description(None if names is None else tuple(names), about, prepared, rules)
    manifest = export_network(network, chosen.point.policy, folder, example(run), format, description, one)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(folder, chosen.name, len(set(manifest.files) - {WEIGHTS}), size)


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
