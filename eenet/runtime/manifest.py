"""What an exported folder says of itself: `model.json`, checked field by field before anything else is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from eenet.errors import UserError
from eenet.files import sha256
from eenet.preprocessing import Preprocessing
from eenet.profile import CostProfile, Costs, TreeCosts
from eenet.tree import Tree

VERSION = 3
MANIFEST = "model.json"
WEIGHTS = "weights.safetensors"
LARGEST_JSON = 64 << 20
"""Bytes of a JSON file that are read at most."""
LARGEST_COUNT = 2**62
LARGEST_TREE = 4096
"""Nodes of a tree at most."""

Format = Literal["torch", "onnx", "onnx-steps"]
"""Of programs: one per exit for torch, one file that routes, or one ONNX file per exit."""
SUFFIX = {"torch": ".json", "onnx-steps": ".onnx"}
ROUTED, ROUTED_ONE = "model.onnx", "model_one.onnx"
"""The file that routes any batch, and the one for a batch of one."""
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
        tree: The network's nodes.
        first_node: Where every sample is sent.
        costs: Of every part or node, and the stages after which exits read.
        num_classes: Width of the logits.
        labels: Names of the classes, if they are known.
        inputs: The tensors of a batch.
        policy: Class and arguments of what decides, which the programs hold.
        gate: Class of the gate.
        point: The operating point: `name`, what was `asked` and what was `got` on the validation split.
        versions: Of what wrote it.
        files: SHA-256 of every other file by name.
        preprocessing: What an image passes to become an input; `None` for texts, or where it is not known.
    """

    format: Format
    backbone: dict[str, Any]
    tree: Tree
    first_node: int
    costs: Costs
    num_classes: int
    labels: tuple[str, ...] | None
    inputs: tuple[InputSpec, ...]
    policy: dict[str, Any]
    gate: str
    point: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str]
    preprocessing: Preprocessing | None = None

    @property
    def programs(self) -> dict[int, str]:
        """File of the step to every place that is reached; nothing where one file has them all."""
        return {} if self.format == "onnx" else program_names(self.format, self.tree, self.first_node)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with their digest."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        prepared = None if self.preprocessing is None else self.preprocessing.to_dict()
        plain = {"inputs": [asdict(spec) for spec in self.inputs], "costs": self.costs.to_dict()}
        values = {"version": VERSION, **values, "tree": self.tree.nodes, **plain, "preprocessing": prepared}
        return {**values, "digest": manifest_digest(values)}


def manifest_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of the values of a `model.json` beside its digest, in whatever order."""
    kept = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def program_names(format: Format, tree: Tree, first_node: int) -> dict[int, str]:
    """Files of the steps by place.

    Example:
        >>> program_names("torch", Tree.chain(2), 0)
        {0: 'exit_0.json', 1: 'exit_1.json'}
    """
    return {place: f"{tree.place_name(place)}{SUFFIX[format]}" for place in tree.places_behind(first_node)}


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
    found = set(manifest.files)
    whole = manifest.format == "onnx"
    expected = {ROUTED, *({ROUTED_ONE, WEIGHTS} & found)} if whole else {WEIGHTS, *manifest.programs.values()}
    if found != expected:
        wrong, files = (
            ", ".join(sorted(found ^ expected)[:3]),
            ROUTED if whole else f"{WEIGHTS} and a program per place",
        )
        raise UserError("export", str(path), f"its files have to be {files}; see {wrong}")
    for name, digest in manifest.files.items():
        if sha256(inside(folder, name)) != digest:
            raise UserError("export", str(folder / name), "is damaged: its SHA-256 is not the one of model.json")
    return manifest


def inside(folder: Path, name: str) -> Path:
    """A plain file of the folder; a `UserError` where it is not there, or leads out of the folder."""
    path = folder / name
    if not path.is_file():
        raise UserError("export", str(path), "is missing; export the run again")
    if path.resolve().parent != folder.resolve():
        raise UserError("export", str(path), "leads out of the folder; only plain files are opened")
    return path


def read_json(folder: Path, name: str) -> Any:
    """A JSON file of the folder; a `UserError` where it is missing, too large, or no JSON."""
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
    tree = _tree(values["tree"])
    costs = _costs(values["costs"], tree)
    first_node = _count("first_node", values["first_node"])
    if first_node >= len(tree.nodes) or len(tree.nodes[first_node]) > 1:
        raise ValueError(f"first_node {first_node} is no beginning of a path")
    return Manifest(
        format,
        values["backbone"],
        tree,
        first_node,
        costs,
        classes,
        None if labels is None else tuple(labels),
        inputs,
        values["policy"],
        str(values["gate"]),
        values["point"],
        values["versions"],
        values["files"],
        _preprocessing(values.get("preprocessing"), inputs),
    )


def _preprocessing(values: Mapping[str, Any] | None, inputs: tuple[InputSpec, ...]) -> Preprocessing | None:
    if values is None:
        return None
    try:
        found = Preprocessing.from_dict(values)
    except UserError as error:
        raise ValueError(str(error)) from error
    if inputs[0].shape != found.input_shape:
        raise ValueError(f"preprocessing gives {found.input_shape}, no input of {inputs[0].shape}")
    return found


def _input(values: Mapping[str, Any]) -> InputSpec:
    name, dtype, shape = values["name"], values["dtype"], values["shape"]
    if not (name is None or isinstance(name, str)) or dtype not in INPUT_TYPES:
        raise ValueError(f"input {name!r} of {dtype!r} is none of {', '.join(INPUT_TYPES)}")
    sizes = tuple(None if size is None else _count("inputs.shape", size, 1) for size in shape)
    return InputSpec(name, dtype, sizes)


def _tree(values: Any) -> Tree:
    if not isinstance(values, list) or not 0 < len(values) <= LARGEST_TREE:
        raise ValueError(f"tree is no list of at most {LARGEST_TREE} paths")
    for path in values:
        if not isinstance(path, list) or not 0 < len(path) <= LARGEST_TREE:
            raise ValueError(f"tree holds {path!r}, no path")
        for width in path:
            _count("tree", width, 1)
    tree = Tree(tuple(map(tuple, values)))
    if Tree.of([path for path in tree.nodes if len(path) == tree.segments]) != tree:
        raise ValueError("tree has nodes that are on no path through all segments")
    return tree


def _costs(values: Mapping[str, Any], tree: Tree) -> Costs:
    costs: Costs = _tree_costs(values) if "nodes" in values else _profile(values)
    if not all(isinstance(name, str) for name in costs.uncounted):
        raise TypeError("costs.uncounted are no names")
    if list(costs.node_exits) != [len(path) - 1 for path in tree.nodes]:
        raise ValueError("costs are not those of the tree's nodes")
    return costs


def _tree_costs(values: Mapping[str, Any]) -> TreeCosts:
    _tree(values["nodes"])
    costs = TreeCosts.from_dict(dict(values))
    for unit, column in costs.columns.items():
        for numbers in (column.routed, column.static, costs.stages):
            if len(numbers) != len(costs.tree.nodes):
                raise ValueError(f"costs.{unit} are not of {len(costs.tree.nodes)} nodes")
        for count in (*column.routed, *column.static, *costs.stages, column.full):
            _count(f"costs.{unit}", count)
    return costs


def _profile(values: Mapping[str, Any]) -> CostProfile:
    costs = CostProfile.from_dict(dict(values))
    if type(costs.boosted) is not bool:
        raise TypeError("costs.boosted is no truth value")
    if costs.stage_bitops is not None and len(costs.stage_bitops) != len(costs.stages):
        raise ValueError(f"costs.stage_bitops are not of {len(costs.stages)} stages")
    for field, parts in (("outer_bitops", (0, 0)), ("head_bitops", costs.heads), ("gate_bitops", costs.gates)):
        found = getattr(costs, field)
        if found is not None and len(found) != len(parts):
            raise ValueError(f"costs.{field} are not of {len(parts)} parts")
    lists = ("stages", "heads", "gates", "exit_stages", "stage_bitops", "outer_bitops", "head_bitops", "gate_bitops")
    for field in lists:
        for count in getattr(costs, field) or ():
            _count(f"costs.{field}", count)
    _count("costs.embed", costs.embed)
    _count("costs.classifier", costs.classifier)
    exits = list(costs.exit_stages)
    if sorted(set(exits)) != exits or any(stage >= len(costs.stages) - 1 for stage in exits):
        raise ValueError(f"costs.exit_stages {exits} do not increase below the last of {len(costs.stages)} stages")
    if not len(costs.heads) == len(costs.gates) == len(exits):
        raise ValueError(f"costs of {len(costs.heads)} heads and {len(costs.gates)} gates for {len(exits)} exits")
    for unit, column in costs.columns.items():
        _count(f"costs.{unit}", column.routed[-1])
    return costs


def _count(field: str, value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < LARGEST_COUNT:
        raise ValueError(f"{field} holds {value!r}, no whole number from {least} to {LARGEST_COUNT}")
    return value
