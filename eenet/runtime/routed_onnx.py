"""An exported network as one ONNX file that routes, run by ONNX Runtime on the CPU: no Python between the exits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eenet.errors import UserError, said
from eenet.routing.route import Routed
from eenet.runtime.exported import Exported, ExportedNetwork
from eenet.runtime.manifest import ROUTED, ROUTED_ONE, Manifest, inside
from eenet.runtime.onnx_program import check, make_session

INPUT, LOGITS, EXIT, COST = "input", "logits", "exit", "cost"
"""Names in the file; an input that has a name of its own keeps it."""

NAN_EXIT = -1
"""The exit that a file gives to a row whose logits are not numbers; it has run to the end, and costs as much."""

LARGEST_FILE = 2**31
"""Bytes of an ONNX file at most, by its format; what is larger has its weights beside it."""


class RoutedOnnx(Exported):
    """Routes batches of any size, 0 included, through one file; a second one serves batches of one where there is one.

    Args:
        manifest: What the folder says of itself.
        folder: Where it is.

    Raises:
        UserError: A package is missing, or a file is damaged or asks for what no export does.

    Attributes:
        network: Tree, costs and exits.
        outputs: Names of what the file returns: `logits`, `exit`, `cost`, and conformal sets.
    """

    fewest = 0

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        super().__init__(manifest)
        self.network, self.source = ExportedNetwork(manifest, [torch.empty(0)]), str(folder)
        behind = manifest.costs.num_exits - 1
        self._inputs = [spec.name or INPUT for spec in manifest.inputs]
        columns = manifest.costs.columns
        self._macs = list(columns["macs"].routed)
        self._bitops = torch.tensor(columns["bitops"].routed) if "bitops" in columns else None
        self._any = self._one = self._open(inside(folder, ROUTED), lambda graph: flat_branches(graph, behind))
        self.outputs = [entry.name for entry in self._any.get_outputs()]
        if ROUTED_ONE in manifest.files:
            self._one = self._open(inside(folder, ROUTED_ONE), lambda graph: nested_branches(graph, behind))

    def _open(self, path: Path, branches: Callable[[Any], str]) -> Any:
        check(path, LARGEST_FILE, branches)
        session = make_session(path)
        inputs, outputs = ([entry.name for entry in ends] for ends in (session.get_inputs(), session.get_outputs()))
        first = [LOGITS, EXIT, COST]
        if inputs != self._inputs or outputs[:3] != first or getattr(self, "outputs", outputs) != outputs:
            found, wanted = f"{', '.join(inputs)} to {', '.join(outputs)}", f"{', '.join(self._inputs)} to {first}"
            raise UserError("export", str(path), f"goes from {found}, not {wanted}")
        return session

    def __call__(self, inputs: Any) -> Routed:
        """Logits, exits, nodes and costs of a batch, in its order; see `run` for what else the file returns.

        Raises:
            UserError: The inputs are of another kind, dtype or shape.
        """
        results = self._results(inputs)
        logits, exits, macs = map(torch.from_numpy, results[:3])
        if NAN_EXIT in exits.tolist():
            exits[exits == NAN_EXIT] = self.network.num_exits - 1
        return Routed(logits, exits, macs, exits, None if self._bitops is None else self._bitops[exits])

    def run(self, inputs: Any) -> dict[str, Tensor]:
        """What the file returns, by name.

        Args:
            inputs: A tensor, or a dict of tensors, as the manifest says.

        Returns:
            `logits`, `(batch, classes)`; `exit`, `(batch,)`, -1 for a row whose logits are not numbers; `cost`, its
            MACs; conformal sets, bool `(batch, classes)`.

        Raises:
            UserError: The inputs are of another kind, dtype or shape.
        """
        return dict(zip(self.outputs, map(torch.from_numpy, self._results(inputs)), strict=True))

    def _results(self, inputs: Any) -> list[np.ndarray]:
        """What the file returns, in the order of `outputs`.

        For one row of a small network all that is done here costs as much as an exit, so that ONNX Runtime checks a
        tensor, and what it returns is looked at by Python, whose operations are quicker than numpy's or torch's.
        """
        if not isinstance(inputs, Tensor):
            inputs = self._checked(inputs)
        try:
            named = {INPUT: inputs} if isinstance(inputs, Tensor) else inputs
            given = {name: named[name].numpy() for name in self._inputs}
            batch = len(given[self._inputs[0]])
            results: list[np.ndarray] = (self._one if batch == 1 else self._any).run(self.outputs, given)
        except Exception as error:  # its exceptions have no common class
            self._checked(inputs)
            raise UserError("export", self.source, f"cannot be run on these inputs ({said(error)})") from error
        logits, exits, macs, *_ = results
        classes, numbers, count = self.manifest.num_classes, exits.tolist(), self.network.num_exits
        known = exits.shape == (batch,) and all(NAN_EXIT <= number < count for number in numbers)
        if logits.shape != (batch, classes) or not known:
            raise UserError("export", self.source, f"does not return {classes} logits and an exit per sample")
        if macs.tolist() != [self._macs[number] for number in numbers]:
            raise UserError("export", self.source, "does not cost what its manifest says")
        return results


def flat_branches(graph: Any, count: int) -> str:
    """What is wrong with the control flow of a file for any batch: `count` `If`s, one after another."""
    branches = _branches(graph)
    if len(branches) != count:
        return f"has {len(branches)} branches where {count} exits follow the first"
    if any(_branches(branch) for pair in branches for branch in pair.values()):
        return "has branches within branches"
    return ""


def nested_branches(graph: Any, count: int) -> str:
    """What is wrong with the control flow of a file for a batch of one: each `If` in the other branch of another."""
    for left in range(count, -1, -1):
        branches = _branches(graph)
        if len(branches) != min(left, 1):
            return f"has {len(branches)} branches in one graph"
        if branches:
            if {node.op_type for node in branches[0]["then_branch"].node} != {"Identity"}:
                return "computes where a sample has left"
            graph = branches[0]["else_branch"]
    return ""


def _branches(graph: Any) -> list[dict[str, Any]]:
    return [
        {attribute.name: attribute.g for attribute in node.attribute} for node in graph.node if node.op_type == "If"
    ]
