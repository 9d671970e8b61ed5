"""What an exported folder gives: something that routes, whatever form its programs have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.routing.compaction import Compaction
from eenet.routing.route import Routed, route_steps
from eenet.routing.steps import Result, Step, place_steps, split_results
from eenet.runtime.manifest import Manifest
from eenet.runtime.program import DTYPES
from eenet.tokens import IDS, TYPES, with_usual


class ExportedNetwork:
    """What routing asks of a network.

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


class Exported:
    """What can be asked of any exported network.

    Args:
        manifest: What the folder says of itself.

    Attributes:
        manifest: The same; `manifest.labels` names the classes where that is known.
        fewest: Rows of a batch at least.
    """

    fewest = 1

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

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

    def _checked(self, inputs: Any) -> Any:
        """Inputs as the programs take them; see `_with_other_types` for what a tokenizer may give or not."""
        specs = self.manifest.inputs
        names = {spec.name for spec in specs}
        if isinstance(inputs, Mapping) and IDS in names and (TYPES in inputs) != (TYPES in names):
            inputs = _with_other_types(inputs)
        found = {None: inputs} if isinstance(inputs, Tensor) else inputs
        if not isinstance(found, Mapping) or set(found) != names:
            wanted = "a tensor" if None in names else f"a dict of {', '.join(sorted(map(str, names)))}"
            given: Any = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise UserError("inputs", given, f"must be {wanted}")
        rows = None
        for spec in specs:
            tensor, field = found[spec.name], f"inputs.{spec.name or ''}".rstrip(".")
            sizes = ("batch", *("any" if size is None else size for size in spec.shape))
            if not isinstance(tensor, Tensor):
                raise UserError(field, type(tensor).__name__, f"must be a tensor of {spec.dtype}, of shape {sizes}")
            given = (str(tensor.dtype), *tensor.shape)
            fits = tensor.ndim == len(sizes) and all(
                size in (None, length) for size, length in zip(spec.shape, tensor.shape[1:], strict=True)
            )
            if not fits or len(tensor) < self.fewest or tensor.dtype != DTYPES[spec.dtype]:
                problem = f"must be {spec.dtype} of shape {sizes} with at least {self.fewest} rows"
                raise UserError(field, given, problem)
            rows = len(tensor) if rows is None else rows
            if len(tensor) != rows:
                raise UserError(field, given, f"must have {rows} rows, as what is before it")
        return inputs


def _with_other_types(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Texts with token types of 0 where they have none, or without those of 0 that they have.

    Raises:
        UserError: They have others.
    """
    if TYPES not in inputs:
        return {name: tensor for name, tensor in with_usual(inputs).items() if name in (*inputs, TYPES)}
    if not isinstance(inputs[TYPES], Tensor) or inputs[TYPES].any():
        problem = (
            "must be: this export does not tell the texts of a pair apart; if its model does, export the run again"
        )
        raise UserError(f"inputs.{TYPES}", "not all 0", problem)
    return {name: tensor for name, tensor in inputs.items() if name != TYPES}


class ExportedRuntime(Exported):
    """Routes batches of any size through exported programs.

    Args:
        manifest: What the folder says of itself.
        programs: By place, from the tensors that are carried to a step to those that it returns.
        weights: Tensors on the device where it runs.

    Attributes:
        network: Tree, costs and exits.
        steps: One per place, as `eenet.routing.route_steps` takes them.
        first_node: Where every sample is sent.
    """

    def __init__(self, manifest: Manifest, programs: dict[int, Any], weights: list[Tensor]) -> None:
        super().__init__(manifest)
        self.network, self.first_node = ExportedNetwork(manifest, weights), manifest.first_node
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
        inputs = self._checked(inputs)
        return route_steps(cast(Any, self.network), inputs, self.steps, compaction, self.first_node)

    def _tensors(self, inputs: Any) -> list[Tensor]:
        names = [spec.name for spec in self.manifest.inputs]
        return [inputs] if names == [None] else [inputs[name] for name in names]

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
