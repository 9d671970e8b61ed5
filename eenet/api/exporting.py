"""A run as a folder that `eenet.load` runs without Lightning or timm."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils import _pytree as pytree

from eenet.api.opening import Chosen, Run, chosen_point, class_names, opened
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
        format: `torch`, `onnx` (one file that routes) or `onnx-steps`.
        point: A point of `calibrate`, else the run's own.
        one: Of `onnx`: a second file for batches of one.
        sets: Of `onnx`: the point's conformal sets as outputs, too.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: No such run or point, a folder that exists, or a network that has no form in the format.
    """
    if format not in get_args(Format):
        raise UserError("format", format, f"must be one of {', '.join(get_args(Format))}")
    folder = Path(out)
    if folder.exists():
        raise UserError("out", str(folder), "exists already; give a new folder")
    run = opened(run, checkpoint)
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
    about = {"name": chosen.name, "asked": chosen.point.asked, "got": chosen.point.got}
    about["weights"] = run.model.network_digest()
    if chosen.point.chosen_on is not None:
        about["chosen_on"] = chosen.point.chosen_on.to_dict()
    if chosen.temperatures is not None:
        about["temperatures"] = chosen.point.own(chosen.temperatures, run.model.network).tolist()
    return about


def example(run: Run, rows: int = 3) -> Any:
    """Some validation inputs; texts are cut to whole tokens, as if all were equally long."""
    inputs = pytree.tree_map(lambda rows_: rows_[:rows], next(iter(run.data.loader("val")))[0])
    if isinstance(inputs, dict):
        inputs = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    return inputs
