"""Running an exported folder: the same routing, without the model's code, Lightning or timm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eenet.costs import CostProfile
from eenet.errors import UserError
from eenet.policies.base import Policy
from eenet.runtime.compaction import Compaction
from eenet.runtime.manifest import WEIGHTS, Manifest, inside, read_json, read_manifest
from eenet.runtime.program import DTYPES, META, Program
from eenet.runtime.route import Routed, route
from eenet.runtime.steps import Result, Step, split_results

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
        ```
    """
    folder, device = Path(folder), torch.device(device)
    manifest = read_manifest(folder)
    if manifest.format == "onnx":
        from eenet.runtime.onnx_program import OnnxProgram

        if device.type != "cpu":
            raise UserError("device", str(device), "ONNX programs run on the CPU; export with --format torch")
        programs: list[Any] = [OnnxProgram(inside(folder, name)) for name in manifest.programs]
        return ExportedRuntime(manifest, programs, [torch.empty(0)])
    try:
        # Copied, because kernels round differently where memory is not aligned as torch aligns it.
        mapped = load_file(inside(folder, WEIGHTS))
        weights = {name: weight.to(device, copy=True) for name, weight in mapped.items()}
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError("export", str(folder / WEIGHTS), f"holds no plain tensors ({error})") from error
    programs = [Program(str(folder / name), read_json(folder, name), weights, device) for name in manifest.programs]
    bound(manifest, programs)
    return ExportedRuntime(manifest, programs, list(weights.values()))


def bound(manifest: Manifest, programs: list[Program]) -> None:
    """Refuse programs whose work does not follow from their inputs, by the shapes of one row and before any is run.

    Raises:
        UserError: Naming the program.
    """
    sizes = [[SHORT if size is None else size for size in spec.shape] for spec in manifest.inputs]
    types = [DTYPES[spec.dtype] for spec in manifest.inputs]
    given = [torch.empty(1, *shape, dtype=dtype, device=META) for shape, dtype in zip(sizes, types, strict=True)]
    for program in programs:
        results = program.bound(given)
        if not results:
            return
        given = results[:-2]  # but logits and who leaves


class ExportedNetwork:
    """What routing and the queue ask of a network.

    Args:
        costs: MACs of every part.
        weights: Tensors on the device where it runs.
    """

    def __init__(self, costs: CostProfile, weights: list[Tensor]) -> None:
        self.costs, self.num_exits, self.exit_stages = costs, costs.num_exits, list(costs.exit_stages)
        self.backbone = SimpleNamespace(num_stages=len(costs.stages))
        self._weights = weights

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""
        return iter(self._weights)


class ExportedRuntime:
    """Routes batches of any size through exported programs; `RebatchingQueue` serves it like an `EarlyExitRuntime`.

    Args:
        manifest: What the folder says of itself.
        programs: One per exit, from the tensors that are carried to a step to those that it returns.
        weights: Tensors on the device where it runs.

    Attributes:
        manifest: The same; `manifest.labels` names the classes where that is known.
        network: Costs and exits.
        steps: One per exit, as `eenet.runtime.route` takes them.
    """

    def __init__(self, manifest: Manifest, programs: list[Any], weights: list[Tensor]) -> None:
        self.manifest = manifest
        self.network = ExportedNetwork(manifest.costs, weights)
        last = len(programs) - 1
        self.steps: list[Step] = [
            partial(self._step, program, exit == 0, exit == last) for exit, program in enumerate(programs)
        ]

    def __call__(self, inputs: Any, compaction: Compaction = Compaction()) -> Routed:  # noqa: B008
        """Logits, exits and MACs of a batch, in its order.

        Args:
            inputs: A tensor, or a dict of tensors, as the manifest says.
            compaction: When samples that have left are dropped.

        Raises:
            UserError: The inputs are of another kind, dtype or shape.
        """
        self._check(inputs)
        # The programs hold the policy, so `route` need not be given one.
        return route(cast(Any, self.network), inputs, cast(Policy, None), compaction, self.steps)

    def _step(self, program: Any, first: bool, last: bool, given: Any) -> Result:
        tensors = self._tensors(given) if first else given
        results = program(*tensors)
        batch = len(tensors[0])
        rows = [len(result) if isinstance(result, Tensor) and result.ndim else None for result in results]
        logits = results[-1 if last else -2] if len(results) > 1 - last else torch.empty(0)
        if set(rows) != {batch} or logits.shape != (batch, self.manifest.num_classes):
            raise UserError("export", program.source, f"does not return {self.manifest.num_classes} logits per sample")
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
