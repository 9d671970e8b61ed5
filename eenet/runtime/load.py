"""Running an exported folder: the same routing, without the model's code, Lightning or timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eenet.errors import UserError
from eenet.routing.compaction import Compaction
from eenet.routing.route import Routed, route_steps
from eenet.routing.steps import Result, Step, place_steps, split_results
from eenet.runtime.manifest import WEIGHTS, Manifest, inside, read_json, read_manifest
from eenet.runtime.program import DTYPES, META, Program

SHORT = 8
"""A length that may vary, where one is needed."""


def load(folder: str | Path, device: str | torch.device = "cpu") -> ExportedRuntime:
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
    if manifest.format == "onnx":
        from eenet.runtime.onnx_program import OnnxProgram

        if device.type != "cpu":
            raise UserError("device", str(device), "ONNX programs run on the CPU; export with --format torch")
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


class ExportedNetwork:
    """What routing and the queue ask of a network.

    Args:
        manifest: What the folder says of itself.
        weights: Tensors on the device where it runs.
    """

    def __init__(self, manifest: Manifest, weights: list[Tensor]) -> None:
        self.tree, self.costs, self.num_exits = manifest.tree, manifest.costs, manifest.costs.num_exits
        *early, stages = manifest.costs.stages_run
        self.exit_stages = [stage - 1 for stage in early]
        self.backbone = SimpleNamespace(num_stages=stages)
        self._weights = weights

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""
        return iter(self._weights)


class ExportedRuntime:
    """Routes batches of any size through exported programs; `RebatchingQueue` serves it like an `EarlyExitRuntime`.

    Args:
        manifest: What the folder says of itself.
        programs: By place, from the tensors that are carried to a step to those that it returns.
        weights: Tensors on the device where it runs.

    Attributes:
        manifest: The same; `manifest.labels` names the classes where that is known.
        network: Tree, costs and exits.
        steps: One per place, as `eenet.routing.route_steps` takes them.
        first_node: Where every sample is sent.
    """

    def __init__(self, manifest: Manifest, programs: dict[int, Any], weights: list[Tensor]) -> None:
        self.manifest, self.first_node = manifest, manifest.first_node
        self.network = ExportedNetwork(manifest, weights)
        tree = manifest.tree
        steps: dict[int, Step] = {}
        for place, nodes in tree.places_behind(self.first_node).items():
            exit, _ = tree.places[place]
            known = torch.tensor([*nodes, *(child for node in nodes for child in tree.children(node))])
            answers = known.to(weights[0].device) if tree.branches else None
            steps[place] = partial(
                self._step, programs[place], exit == 0, exit == manifest.costs.num_exits - 1, answers
            )
        self.steps = place_steps(tree, steps)

    def __call__(self, inputs: Any, compaction: Compaction = Compaction()) -> Routed:  # noqa: B008
        """Logits, exits, nodes and costs of a batch, in its order.

        Args:
            inputs: A tensor, or a dict of tensors, as the manifest says.
            compaction: When samples that have left are dropped.

        Raises:
            UserError: The inputs are of another kind, dtype or shape.
        """
        self._check(inputs)
        return route_steps(cast(Any, self.network), inputs, self.steps, compaction, self.first_node)

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """What makes an input, `(channels, height, width)`, of an image: its path, its bytes, or a Pillow image.

        Raises:
            UserError: The folder does not say how images were preprocessed, as for texts.
        """
        if self.manifest.preprocessing is None:
            raise UserError(
                "export", "preprocessing", "the folder says nothing of images; transform inputs as in training"
            )
        return self.manifest.preprocessing.read

    def _step(self, program: Any, first: bool, last: bool, answers: Tensor | None, given: Any) -> Result:
        tensors = self._tensors(given) if first else given
        results = program(*tensors)
        batch = len(tensors[0])
        rows = [len(result) if isinstance(result, Tensor) and result.ndim else None for result in results]
        logits = results[-1 if last else -2] if len(results) > 1 - last else torch.empty(0)
        if set(rows) != {batch} or logits.shape != (batch, self.manifest.num_classes):
            raise UserError("export", program.source, f"does not return {self.manifest.num_classes} logits per sample")
        if not last and answers is not None:
            after = results[-1]
            if after.dtype != torch.long or not torch.isin(after, answers).all():
                raise UserError("export", program.source, "sends a sample to a node that does not follow")
        return split_results(results, last)

    def _tensors(self, inputs: Any) -> list[Tensor]:
        names = [spec.name for spec in self.manifest.inputs]
        return [inputs] if names == [None] else [inputs[name] for name in names]

    def _check(self, inputs: Any) -> None:
        specs = self.manifest.inputs
        names = {spec.name for spec in specs}
        found = {None: inputs} if isinstance(inputs, Tensor) else inputs
        if not isinstance(found, Mapping) or set(found) != names:
            wanted = "a tensor" if None in names else f"a dict of {', '.join(sorted(map(str, names)))}"
            raise UserError("inputs", sorted(found) if isinstance(found, Mapping) else type(found).__name__, wanted)
        for spec in specs:
            tensor, sizes = found[spec.name], ("batch", *("any" if size is None else size for size in spec.shape))
            fits = tensor.ndim == len(sizes) and all(
                size in (None, length) for size, length in zip(spec.shape, tensor.shape[1:], strict=True)
            )
            if not fits or not len(tensor) or tensor.dtype != DTYPES[spec.dtype]:
                problem = f"must be {spec.dtype} of shape {sizes} with at least one row"
                raise UserError(f"inputs.{spec.name or ''}".rstrip("."), (str(tensor.dtype), *tensor.shape), problem)
