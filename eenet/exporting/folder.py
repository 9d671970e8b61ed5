"""The exported folder: written beside its place, tried, and renamed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet import __version__
from eenet.calibration.points import policy_to_dict
from eenet.errors import UserError
from eenet.exporting import onnx_program, torch_program
from eenet.files import sha256, whole
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, RandomExits
from eenet.preprocessing import Preprocessing
from eenet.reporting import write_json
from eenet.routing.steps import make_steps, walk
from eenet.runtime.load import load
from eenet.runtime.manifest import MANIFEST, WEIGHTS, Format, InputSpec, Manifest, program_names
from eenet.runtime.trace import Traced, flatten, trace

TOLERANCE = 1e-4
"""Largest difference, relative to 1 or to the value, where a step is not compared bit for bit."""

ROUNDED = 0.05
"""Largest mean difference, relative to the mean magnitude, where a quantizer may enlarge one to a step of its grid."""


@dataclass(frozen=True)
class Description:
    """What a folder says that the network does not know.

    Attributes:
        labels: Names of the classes.
        point: Of the operating point: `name`, `asked`, `got`, and what it was `chosen_on`.
        preprocessing: What an image passes to become an input.
    """

    labels: tuple[str, ...] | None = None
    point: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None


@torch.no_grad()
def export_network(
    network: EarlyExitNetwork,
    policy: Policy,
    folder: Path,
    example: Any,
    format: Format = "torch",
    description: Description = Description(),
) -> Manifest:
    """Write a routed network as a folder, whole or not at all.

    Every program is read back and run on one and on all rows of the example; it has to give what the network gives: bit
    for bit for images in the torch format, else to `TOLERANCE`, or to `ROUNDED` where something is quantized.

    Args:
        network: On the CPU; put in evaluation mode.
        policy: Decides who leaves.
        folder: Where it is written; must not exist.
        example: Three or more inputs as the backbone takes them, texts without padding.
        format: Of the programs.
        description: Labels and operating point.

    Raises:
        UserError: The folder exists, or the network or the policy has no form in the format.
    """
    if folder.exists():
        raise UserError("out", str(folder), "exists already; give a new folder")
    if isinstance(policy, RandomExits):
        raise UserError("policy", "RandomExits", "draws at random, a control that is measured and not shipped")
    network.check(policy)
    network.eval()
    with whole(folder, folder=True) as beside:
        steps = dict(trace(network, policy, example))
        write = _write_torch if format == "torch" else _write_onnx
        names = program_names(format, network.tree, policy.first_node)
        write(list(steps.values()), beside, list(names.values()))
        manifest = Manifest(
            format=format,
            backbone=network.backbone.description(),
            tree=network.tree,
            first_node=policy.first_node,
            costs=network.costs,
            num_classes=network.backbone.num_classes,
            labels=description.labels,
            inputs=input_specs(example, steps[network.tree.place_of[policy.first_node]]),
            policy=policy_to_dict(policy),
            gate=type(network.gate).__name__,
            point=description.point,
            versions={"eenet": __version__, "torch": version("torch")},
            files={name: sha256(beside / name) for name in (WEIGHTS, *names.values())},
            preprocessing=description.preprocessing,
        )
        write_json(beside / MANIFEST, manifest.to_dict())
        compare(network, policy, beside, example)
    return manifest


def input_specs(example: Any, first: Traced) -> tuple[InputSpec, ...]:
    """Names, dtypes and shapes of the inputs."""
    names = list(example) if isinstance(example, dict) else [None]
    return tuple(
        InputSpec(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(None if axis in dynamic else size for axis, size in enumerate(tensor.shape) if axis),
        )
        for name, tensor, dynamic in zip(names, first.tensors, first.dynamic, strict=True)
    )


def compare(network: EarlyExitNetwork, policy: Policy, folder: Path, example: Any) -> None:
    """Run every program of a folder beside the step that it stands for, on the first row and on all rows.

    Raises:
        UserError: They differ.
    """
    runtime = load(folder)
    # Texts have masks that a graph cannot leave out, as the network does where nothing is masked.
    exact = runtime.manifest.format == "torch" and network.backbone.max_tokens is None
    quantized = "bitops" in network.costs.columns
    tree, first, steps = network.tree, policy.first_node, make_steps(network, policy)
    for inputs in (pytree.tree_map(lambda rows: rows[:1], example), example):
        for place, given, result in walk(tree, first, steps, inputs):
            exit, _ = tree.places[place]
            found = flatten(*runtime.steps[place](pytree.tree_leaves(given) if exit else given))
            if not all(agrees(*pair, exact, quantized) for pair in zip(found, flatten(*result), strict=True)):
                problem = (
                    f"the program of {tree.place_name(place)} differs from the network; export in the other format"
                )
                raise UserError("format", runtime.manifest.format, problem)


def agrees(found: Tensor, expected: Tensor, exact: bool, quantized: bool) -> bool:
    """Whether a result is what it should be; a decision may differ if not exact, where a score meets its threshold."""
    if exact or found.dtype != expected.dtype or found.shape != expected.shape:
        return torch.equal(found, expected)
    if not found.is_floating_point():
        return True
    if quantized:
        return bool((found - expected).abs().mean() <= ROUNDED * expected.abs().mean())
    return torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _write_torch(steps: list[Traced], folder: Path, names: list[str]) -> None:
    weights: dict[str, Tensor] = {}
    for step, name in zip(steps, names, strict=True):
        content, own = torch_program.encode(step)
        (folder / name).write_text(json.dumps(content, allow_nan=False))
        weights |= own
    _write_weights(folder, weights)


def _write_onnx(steps: list[Traced], folder: Path, names: list[str]) -> None:
    models, weights = [], dict[str, Tensor]()
    for step in steps:
        model, own = onnx_program.translate(step)
        models.append(model)
        weights |= own
    _write_weights(folder, weights)
    for step, model, name in zip(steps, models, names, strict=True):
        onnx_program.save(step.name, model, folder, folder / name)


def _write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: weight.clone().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
