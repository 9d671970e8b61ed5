"""Running an exported folder: the same routing, without the model's code, Lightning or timm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from eenet.errors import UserError
from eenet.runtime.exported import ExportedRuntime
from eenet.runtime.manifest import WEIGHTS, Manifest, inside, read_json, read_manifest
from eenet.runtime.onnx_program import OnnxProgram
from eenet.runtime.program import DTYPES, META, Program
from eenet.runtime.routed_onnx import RoutedOnnx

SHORT = 8
"""A length that may vary, where one is needed."""


def load(folder: str | Path, device: str | torch.device = "cpu") -> ExportedRuntime | RoutedOnnx:
    """Load what `eenet export` wrote; nothing in the folder is executed but operations of a fixed list.

    Args:
        folder: The exported folder.
        device: Where it runs; ONNX programs run on the CPU.

    Raises:
        UserError: Naming the file that is missing, damaged, or asks for what an export may not.

    Example:
        ```python
        model = eenet.runtime.load("exported")
        routed = model(images)
        print(routed.logits.argmax(-1), routed.exits, routed.macs)
        images = torch.stack([model.transform(path) for path in ["cat.jpg", "dog.png"]])
        ```
    """
    folder, device = Path(folder), torch.device(device)
    manifest = read_manifest(folder)
    if manifest.format != "torch" and device.type != "cpu":
        raise UserError("device", str(device), "ONNX programs run on the CPU; export with --format torch")
    if manifest.format == "onnx":
        return RoutedOnnx(manifest, folder)
    if manifest.format == "onnx-steps":
        programs: dict[int, Any] = {
            place: OnnxProgram(inside(folder, name)) for place, name in manifest.programs.items()
        }
        return ExportedRuntime(manifest, programs, [torch.empty(0)])
    try:
        # Copied, because kernels round differently where memory is not aligned as torch aligns it.
        mapped = load_file(inside(folder, WEIGHTS))
        weights = {name: weight.to(device, copy=True) for name, weight in mapped.items()}
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError("export", str(folder / WEIGHTS), f"holds no plain tensors ({error})") from error
    programs = {
        place: Program(str(folder / name), read_json(folder, name), weights, device)
        for place, name in manifest.programs.items()
    }
    bound(manifest, programs)
    return ExportedRuntime(manifest, programs, list(weights.values()))


def bound(manifest: Manifest, programs: Mapping[int, Program]) -> None:
    """Refuse programs whose work does not follow from their inputs, by the shapes of one row and before any is run.

    Raises:
        UserError: Naming the program.
    """
    sizes = [[SHORT if size is None else size for size in spec.shape] for spec in manifest.inputs]
    types = [DTYPES[spec.dtype] for spec in manifest.inputs]
    tree, first = manifest.tree, manifest.first_node
    given = [torch.empty(1, *shape, dtype=dtype, device=META) for shape, dtype in zip(sizes, types, strict=True)]
    waiting: dict[int, list[Any]] = {tree.place_of[first]: given}
    for place, nodes in tree.places_behind(first).items():
        if results := programs[place].bound(waiting[place]) if place in waiting else []:
            handed_on = results[:-2]  # but logits and who leaves
            waiting |= {tree.place_of[child]: handed_on for node in nodes for child in tree.children(node)}
