"""What an exported folder says of itself: `model.json`, checked field by field before anything else is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eenet.costs import CostProfile
from eenet.errors import UserError
from eenet.files import sha256

VERSION = 2
MANIFEST = "model.json"
WEIGHTS = "weights.safetensors"
LARGEST_JSON = 64 << 20
"""Bytes of a JSON file that are read at most."""
LARGEST_COUNT = 2**62

Format = Literal["torch", "onnx"]
SUFFIX = {"torch": ".json", "onnx": ".onnx"}
INPUT_TYPES = ("float32", "int64")


@dataclass(frozen=True)
class InputSpec:
    """One tensor of a batch of inputs.

    Attributes:
        name: Its key where inputs are a dict, `None` where they are this tensor alone.
        dtype: Such as `float32`.
        shape: After the batch axis; `None` for a length that may vary.
    """

    name: str | None
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Manifest:
    """An exported network, its weights and programs aside.

    Attributes:
        format: Of its programs.
        backbone: What identifies the architecture.
        costs: MACs of every part, and the stages after which exits read.
        num_classes: Width of the logits.
        labels: Names of the classes, if they are known.
        inputs: The tensors of a batch.
        policy: Class and arguments of what decides, which the programs hold.
        gate: Class of the gate.
        point: The operating point: `name`, what was `asked` and what was `got` on the validation split.
        versions: Of what wrote it.
        files: SHA-256 of every other file by name.
    """

    format: Format
    backbone: dict[str, Any]
    costs: CostProfile
    num_classes: int
    labels: tuple[str, ...] | None
    inputs: tuple[InputSpec, ...]
    policy: dict[str, Any]
    gate: str
    point: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str]

    @property
    def programs(self) -> list[str]:
        """File of every exit's step."""
        return program_names(self.format, self.costs.num_exits)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with their digest."""
        values = {"version": VERSION, **asdict(self), "costs": self.costs.to_dict()}
        return {**values, "digest": manifest_digest(values)}


def manifest_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of the values of a `model.json` beside its digest, in whatever order."""
    kept = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def program_names(format: Format, num_exits: int) -> list[str]:
    """Files of the steps of so many exits."""
    return [f"exit_{exit}{SUFFIX[format]}" for exit in range(num_exits)]


def read_manifest(folder: Path) -> Manifest:
    """Read and check `model.json`, and that exactly the files it stands for are there, undamaged.

    Raises:
        UserError: Naming the file that is missing, damaged, or not what it should be.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError("export", str(folder), "there is no such folder; `eenet export` makes one")
    values = read_json(folder, MANIFEST)
    if not isinstance(values, dict) or values.get("version") != VERSION:
        found = values.get("version") if isinstance(values, dict) else None
        raise UserError("export", str(path), f"is of version {found!r}, not {VERSION}; export the run again")
    if values.get("digest") != manifest_digest(values):
        raise UserError("export", str(path), "was changed or damaged: its digest is another; export the run again")
    try:
        manifest = _parse(values)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError("export", str(path), f"is damaged ({type(error).__name__}: {error})") from error
    expected = {WEIGHTS, *manifest.programs}
    if set(manifest.files) != expected:
        wrong = ", ".join(sorted(set(manifest.files) ^ expected)[:3])
        raise UserError("export", str(path), f"its files have to be {WEIGHTS} and one program per exit; see {wrong}")
    for name, digest in manifest.files.items():
        if sha256(inside(folder, name)) != digest:
            raise UserError("export", str(folder / name), "is damaged: its SHA-256 is not the one of model.json")
    return manifest


def inside(folder: Path, name: str) -> Path:
    """A plain file of the folder.

    Raises:
        UserError: It is not there, or leads out of the folder.
    """
    path = folder / name
    if not path.is_file():
        raise UserError("export", str(path), "is missing; export the run again")
    if path.resolve().parent != folder.resolve():
        raise UserError("export", str(path), "leads out of the folder; only plain files are opened")
    return path


def read_json(folder: Path, name: str) -> Any:
    """A JSON file of the folder.

    Raises:
        UserError: It is missing, too large, or no JSON.
    """
    path = inside(folder, name)
    if path.stat().st_size > LARGEST_JSON:
        raise UserError("export", str(path), f"is larger than {LARGEST_JSON} bytes; no export is")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("export", str(path), f"is no JSON ({type(error).__name__})") from error


def _parse(values: Mapping[str, Any]) -> Manifest:
    format, labels, classes = values["format"], values["labels"], _count("num_classes", values["num_classes"], 1)
    if format not in get_args(Format):
        raise ValueError(f"format {format!r} is none of {', '.join(get_args(Format))}")
    if labels is not None and (len(labels) != classes or not all(isinstance(label, str) for label in labels)):
        raise ValueError(f"labels are not {classes} names")
    inputs = tuple(_input(spec) for spec in values["inputs"])
    if not inputs or (len(inputs) > 1 and any(spec.name is None for spec in inputs)):
        raise ValueError("inputs are one tensor, or several with names")
    for field in ("backbone", "policy", "point", "versions", "files"):
        if not isinstance(values[field], dict):
            raise TypeError(f"{field} is no object")
    return Manifest(
        format,
        values["backbone"],
        _costs(values["costs"]),
        classes,
        None if labels is None else tuple(labels),
        inputs,
        values["policy"],
        str(values["gate"]),
        values["point"],
        values["versions"],
        values["files"],
    )


def _input(values: Mapping[str, Any]) -> InputSpec:
    name, dtype, shape = values["name"], values["dtype"], values["shape"]
    if not (name is None or isinstance(name, str)) or dtype not in INPUT_TYPES:
        raise ValueError(f"input {name!r} of {dtype!r} is none of {', '.join(INPUT_TYPES)}")
    sizes = tuple(None if size is None else _count("inputs.shape", size, 1) for size in shape)
    return InputSpec(name, dtype, sizes)


def _costs(values: Mapping[str, Any]) -> CostProfile:
    costs = CostProfile.from_dict(dict(values))
    for field in ("stages", "heads", "gates", "exit_stages"):
        for count in getattr(costs, field):
            _count(f"costs.{field}", count)
    _count("costs.embed", costs.embed)
    _count("costs.classifier", costs.classifier)
    exits = list(costs.exit_stages)
    if sorted(set(exits)) != exits or any(stage >= len(costs.stages) - 1 for stage in exits):
        raise ValueError(f"costs.exit_stages {exits} do not increase below the last of {len(costs.stages)} stages")
    if not len(costs.heads) == len(costs.gates) == len(exits):
        raise ValueError(f"costs of {len(costs.heads)} heads and {len(costs.gates)} gates for {len(exits)} exits")
    if not all(isinstance(name, str) for name in costs.uncounted):
        raise TypeError("costs.uncounted are no names")
    _count("costs", costs.cumulative[-1])
    return costs


def _count(field: str, value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < LARGEST_COUNT:
        raise ValueError(f"{field} holds {value!r}, no whole number from {least} to {LARGEST_COUNT}")
    return value
