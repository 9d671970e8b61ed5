"""The exported folder: written beside its place, tried, and renamed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet import __version__
from eenet.calibration.points import OperatingPoint, policy_to_dict
from eenet.errors import UserError
from eenet.exporting import onnx_program, torch_program
from eenet.exporting.fast_gates import with_fast_gates
from eenet.exporting.integers import AllExits, Integers, IntegerSteps
from eenet.exporting.routed_onnx import SetRule, compose
from eenet.files import sha256, whole
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, RandomExits
from eenet.preprocessing import Preprocessing
from eenet.progress import tracked
from eenet.reporting import gather_exits, write_json
from eenet.routing.steps import make_steps, walk
from eenet.runtime.exported import ExportedRuntime
from eenet.runtime.load import load
from eenet.runtime.manifest import (
    MANIFEST,
    ROUTED,
    ROUTED_ONE,
    WEIGHTS,
    Format,
    InputSpec,
    Manifest,
    program_names,
)
from eenet.runtime.trace import Traced, flatten, trace

TOLERANCE = 1e-4
"""Largest difference, relative to 1 or to the value, where a step is not compared bit for bit."""

LARGEST_INSIDE = 2**31 - 2**26
"""Bytes of weights that an ONNX file takes in, below the 2 GB of its format; more lie in `weights.safetensors`."""

ROUNDED = 0.05
"""Largest mean difference, relative to the mean magnitude, where a quantizer may enlarge one to a step of its grid."""


@dataclass(frozen=True)
class Description:
    """What a folder says that the network does not know.

    Attributes:
        labels: Names of the classes.
        point: Of the operating point: `name`, `asked`, `got`, and what it was `chosen_on`.
        preprocessing: What an image passes to become an input.
        sets: Conformal sets by name, which one file that routes returns, too.
    """

    labels: tuple[str, ...] | None = None
    point: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    sets: dict[str, SetRule] = field(default_factory=dict)


def set_rules(point: OperatingPoint, temperatures: Sequence[float] | None) -> dict[str, SetRule]:
    """The conformal sets of an operating point by their names in a file, such as `set_common_0.1`.

    Args:
        point: The point.
        temperatures: Of its exits.

    Raises:
        UserError: It has no sets.
    """
    if not point.conformal or temperatures is None:
        raise UserError("sets", True, "the point has none; `eenet calibrate` makes them, and --point names its points")
    return {
        f"set_{mode}_{alpha:g}": SetRule(temperatures, found.values.numpy())
        for (mode, alpha), found in point.conformal.items()
    }


@torch.no_grad()
def export_network(
    network: EarlyExitNetwork,
    policy: Policy,
    folder: Path,
    example: Any,
    format: Format = "torch",
    description: Description = Description(),
    one: bool = False,
    integers: Integers | None = None,
) -> Manifest:
    """Write a routed network as a folder, whole or not at all.

    Every program is read back and run on one and on all rows of the example; it has to give what the network gives: bit
    for bit for images in the torch format, else to `TOLERANCE`, or to `ROUNDED` where something is quantized. One ONNX
    file that routes is made of programs that were tried so, and tried itself.

    Args:
        network: On the CPU; put in evaluation mode.
        policy: Decides who leaves.
        folder: Where it is written; must not exist.
        example: Three or more inputs as the backbone takes them, texts without padding.
        format: Of the programs.
        description: Labels and operating point.
        one: Beside one ONNX file that routes, write a second for batches of one.
        integers: Makes the arithmetic of one ONNX file int8; it is compared with all int8 steps as one graph.

    Raises:
        UserError: The folder exists, or the network or the policy has no form in the format.
    """
    if folder.exists():
        raise UserError("out", str(folder), "exists already; give a new folder")
    if isinstance(policy, RandomExits):
        raise UserError("policy", "RandomExits", "draws at random, a control that is measured and not shipped")
    network.check(policy)
    if format == "onnx" and network.tree.branches:
        raise UserError("format", "onnx", "routes along a chain; paths that branch need onnx-steps")
    if format != "onnx" and (one or description.sets):
        raise UserError("format", format, "has no file for a batch of one and no sets; give onnx")
    if integers is not None:
        check_integers(network, format)
    network.eval()
    if format == "onnx":
        return _export_routed(network, policy, folder, example, description, one, integers)
    with whole(folder, folder=True) as beside:
        names = program_names(format, network.tree, policy.first_node)
        traced = (network, policy) if format == "torch" else with_fast_gates(network, policy)
        steps = dict(tracked(trace(*traced, example), "tracing the steps", len(names)))
        write = _write_torch if format == "torch" else _write_onnx
        write(list(steps.values()), beside, list(names.values()))
        inputs = input_specs(example, steps[network.tree.place_of[policy.first_node]])
        manifest = _manifest(network, policy, format, inputs, description, beside, (WEIGHTS, *names.values()))
        compare(network, policy, beside, example)
    return manifest


def _export_routed(
    network: EarlyExitNetwork,
    policy: Policy,
    folder: Path,
    example: Any,
    description: Description,
    one: bool,
    integers: Integers | None,
) -> Manifest:
    onnx: Any = import_module("onnx")
    plain = Description(description.labels, description.point, description.preprocessing)
    with whole(folder, folder=True) as beside:
        tried = beside / "steps"
        steps, inputs, beyond = onnx_steps(network, policy, tried, example, plain)
        made = None
        if integers is not None:
            made = to_integers(integers, steps, beyond)
            steps = made.steps
        macs = network.costs.columns["macs"].routed
        files = {ROUTED: False, **({ROUTED_ONE: True} if one else {})}
        for name, alone in files.items():
            onnx.save(compose(steps, inputs, macs, description.sets, alone, integers is None), str(beside / name))
        if beyond:
            (tried / WEIGHTS).rename(beside / WEIGHTS)
        rmtree(tried)
        kept = (*files, *([WEIGHTS] if beyond else []))
        manifest = _manifest(network, policy, "onnx", inputs, description, beside, kept)
        _compare_routed(network, policy, beside, example, made)
    return manifest


def onnx_steps(
    network: EarlyExitNetwork, policy: Policy, folder: Path, example: Any, description: Description = Description()
) -> tuple[list[Any], tuple[InputSpec, ...], bool]:
    """The steps of a network as ONNX models, which were tried; their inputs; and whether weights stay in the folder.

    Raises:
        UserError: As `export_network`.
    """
    onnx_program.require_packages()
    onnx: Any = import_module("onnx")
    inputs = export_network(network, policy, folder, example, "onnx-steps", description).inputs
    names = program_names("onnx-steps", network.tree, policy.first_node).values()
    beyond = (folder / WEIGHTS).stat().st_size > LARGEST_INSIDE
    return [onnx.load(str(folder / name), load_external_data=not beyond) for name in names], inputs, beyond


def check_integers(network: EarlyExitNetwork, format: Format = "onnx") -> None:
    """Refuse int8 arithmetic where there is none, before anything runs.

    Raises:
        UserError: Another format, a network that is quantized already, or whose exits answer with earlier ones' logits.
    """
    if format != "onnx":
        raise UserError("int8", True, f"is for one ONNX file that routes, not for {format}; give --format onnx")
    if network.tree.branches or "bitops" in network.costs.columns:
        raise UserError("int8", True, "the network is quantized already, to widths of its own; leave it out")
    if getattr(network.gate, "recall", False):
        raise UserError("int8", True, "exits that answer with earlier ones' logits are not chosen again; take stopping")


def to_integers(integers: Integers, steps: list[Any], beyond: bool) -> IntegerSteps:
    """Steps with int8 arithmetic; a `UserError` where their weights are too large for one graph, or none has it."""
    if beyond:
        raise UserError("int8", True, f"is for networks of at most {LARGEST_INSIDE} bytes of weights; leave it out")
    return integers.convert(steps)


def _manifest(
    network: EarlyExitNetwork,
    policy: Policy,
    format: Format,
    inputs: tuple[InputSpec, ...],
    description: Description,
    folder: Path,
    files: Sequence[str],
) -> Manifest:
    """What a folder that has these files says of itself, written into it."""
    manifest = Manifest(
        format=format,
        backbone=network.backbone.description(),
        tree=network.tree,
        first_node=policy.first_node,
        costs=network.costs,
        num_classes=network.backbone.num_classes,
        labels=description.labels,
        inputs=inputs,
        policy=policy_to_dict(policy),
        gate=type(network.gate).__name__,
        point=description.point,
        versions={"eenet": __version__, "torch": version("torch")},
        files={name: sha256(folder / name) for name in files},
        preprocessing=description.preprocessing,
    )
    write_json(folder / MANIFEST, manifest.to_dict())
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
    assert isinstance(runtime, ExportedRuntime)
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


def _compare_routed(
    network: EarlyExitNetwork, policy: Policy, folder: Path, example: Any, made: IntegerSteps | None
) -> None:
    """Route the example through a file and the network, its first row and all; a `UserError` where they differ."""
    runtime = load(folder)
    for inputs in (pytree.tree_map(lambda rows: rows[:1], example), example):
        found = runtime(inputs)
        if made is None:
            expected = network.route(inputs, policy)
            exits, logits = expected.exits, expected.logits
        else:
            exits, logits = choose_exits(network, policy, AllExits(made.whole)(inputs))
        same = found.exits == exits
        if not agrees(found.logits[same], logits[same], False, "bitops" in network.costs.columns):
            raise UserError("format", "onnx", "the file differs from the network; export in the other format")


def choose_exits(network: EarlyExitNetwork, policy: Policy, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where samples leave by every exit's logits, `(batch, exits, classes)`, and their logits there."""
    scores = network.gate(logits[:, :-1])
    answers = torch.cat([network.gate.answers(logits[:, :-1]), logits[:, -1:]], dim=1)
    exits = policy.exits(answers.argmax(-1), scores)
    return exits, gather_exits(answers, exits)


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
    for step, name in zip(tracked(steps, "writing the steps"), names, strict=True):
        content, own = torch_program.encode(step)
        (folder / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        weights |= own
    _write_weights(folder, weights)


def _write_onnx(steps: list[Traced], folder: Path, names: list[str]) -> None:
    models, weights = [], dict[str, Tensor]()
    for step in tracked(steps, "translating the steps to ONNX"):
        model, own = onnx_program.translate(step)
        models.append(model)
        weights |= own
    _write_weights(folder, weights)
    for step, model, name in zip(steps, models, names, strict=True):
        onnx_program.save(step.name, model, folder, folder / name)


def _write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: weight.clone().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
