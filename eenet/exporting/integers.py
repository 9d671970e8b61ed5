"""Static int8 arithmetic for the steps of a network: quantized as one graph, and cut again where the steps end.

ONNX Runtime's quantizer leaves alone what lies behind an `If`, and ranges of later steps depend on what earlier ones
round. So all steps are put into one plain graph, with every head; ranges come from calibrating inputs that all go to
the end; and the graph is cut at the states again, at their codes where nothing but quantized layers reads them.

What has int8 arithmetic: convolutions and products with weights, per channel, and between convolutions what passes
their maps on. What has not: products of two activations, normalisations, softmax, the layer that makes logits, gates.

Weights have 7 bits, as ONNX Runtime advises: processors without VNNI add pairs of products in 16 bits, where larger
weights saturate, and a file would leave elsewhere on another machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.errors import UserError, said
from eenet.exporting.one_graph import cut_steps, heads_of, merge
from eenet.exporting.onnx_program import quiet
from eenet.runtime.onnx_program import feed, make_session

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators whose second input are weights."""

LAYERS = (*WEIGHTED, "ConvTranspose", "Einsum", "GRU", "LSTM", "RNN")
"""Operators that may have weights."""

PASSING = ("Relu", "Clip", "Slice", "Pad", "MaxPool")
"""What hands the codes of one map on."""

ROWS = 32
"""Calibrating inputs that run together."""


@dataclass(frozen=True)
class IntegerSteps:
    """Steps with int8 arithmetic.

    Attributes:
        steps: ONNX models, as those that were given; codes are handed on in uint8.
        layers: Number of layers with int8 arithmetic.
        left: Layers with weights that stay in floating point, beside those that make logits and the gates.
        plain: All steps as one graph that returns every exit's logits, in floating point.
        whole: The same with int8 arithmetic.
    """

    steps: list[Any]
    layers: int
    left: tuple[str, ...]
    plain: Any
    whole: Any


class AllExits:
    """Every exit's logits from one graph.

    Args:
        model: `plain` or `whole` of `IntegerSteps`.
    """

    def __init__(self, model: Any) -> None:
        self.session = make_session(model.SerializeToString())
        self.names = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, inputs: Any) -> Tensor:
        """Logits, `(batch, exits, classes)`."""
        found = self.session.run(None, feed(self.names, pytree.tree_leaves(inputs)))
        return torch.stack([torch.from_numpy(logits) for logits in found], dim=1)


class Integers:
    """Makes the arithmetic of steps int8; once ranges are known they stay, whatever thresholds the steps have.

    Args:
        inputs: Calibrating inputs: a tensor, or a dict of tensors.
        cache: A file that does not exist yet, for the ranges.

    Raises:
        UserError: There are fewer than two inputs, or all are the same.
    """

    def __init__(self, inputs: Any, cache: Path) -> None:
        tensors = pytree.tree_leaves(inputs)
        if len(tensors[0]) < 2:
            raise UserError("int8-samples", len(tensors[0]), "ranges are taken from at least 2 samples")
        if all(bool((tensor == tensor[:1]).all()) for tensor in tensors):
            raise UserError(
                "int8-samples", len(tensors[0]), "all of them are the same; ranges need samples that differ"
            )
        if any(not bool(tensor.isfinite().all()) for tensor in tensors):
            raise UserError("int8-samples", len(tensors[0]), "some hold what is no finite number")
        self.inputs, self.cache = inputs, cache

    def convert(self, steps: Sequence[Any]) -> IntegerSteps:
        """Steps with int8 arithmetic.

        Args:
            steps: ONNX models as `eenet.exporting.routed_onnx.compose` takes them.

        Raises:
            UserError: No layer has int8 arithmetic, or ONNX Runtime refuses the network.
        """
        merged = merge(steps)
        graph, logits = merged.model.graph, merged.logits
        chosen, maps = choose_nodes(graph, logits)
        if not chosen:
            raise UserError("int8", True, "no layer of this network has int8 arithmetic; leave it out")
        plain = heads_of(merged.model, logits)  # the quantizer moves the weights of what it is given to a file
        whole = self._quantized(merged.model, chosen)
        _restore(whole.graph, set(chosen), maps)
        layers, left = _judge(whole.graph, _floating(graph, logits))
        parts = cut_steps(whole.graph, steps, merged.ends)
        scopes = tuple(dict.fromkeys(merged.scopes[name] for name in left))
        return IntegerSteps(parts, layers, scopes, plain, heads_of(whole, logits))

    def _quantized(self, model: Any, chosen: Sequence[str]) -> Any:
        onnx, library = import_module("onnx"), import_module("onnxruntime.quantization")
        operators = sorted({*WEIGHTED, *PASSING, "Add"})
        with TemporaryDirectory(prefix="eenet-") as folder, quiet():
            path = Path(folder, "whole.onnx")
            try:
                library.quantize_static(
                    model,
                    path,
                    _Reader(self._batches(model)),
                    op_types_to_quantize=operators,
                    nodes_to_quantize=list(chosen),
                    per_channel=True,
                    reduce_range=True,
                    activation_type=library.QuantType.QUInt8,
                    weight_type=library.QuantType.QInt8,
                    calibration_cache_path=self.cache,
                    extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
                )
            except Exception as error:  # its exceptions have no common class
                problem = f"ONNX Runtime's quantizer refuses the network ({said(error)}); leave it out"
                raise UserError("int8", True, problem) from error
            return onnx.load(str(path))

    def _batches(self, model: Any) -> Iterator[dict[str, Any]]:
        names = [info.name for info in model.graph.input]
        for rows in zip(*(tensor.split(ROWS) for tensor in pytree.tree_leaves(self.inputs)), strict=True):
            yield feed(names, rows)


class _Reader:
    """Calibrating batches one by one, as the quantizer asks for them."""

    def __init__(self, batches: Iterable[dict[str, Any]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def choose_nodes(graph: Any, logits: Sequence[str]) -> tuple[list[str], set[str]]:
    """What gets int8 arithmetic: layers with weights, and what lies between convolutions.

    Args:
        graph: Of the whole network.
        logits: Names of the exits' logits.

    Returns:
        Names of the nodes, and of the maps that they make codes of.
    """
    weights, kept = {weight.name for weight in graph.initializer}, _floating(graph, logits)
    chosen, maps = [], set[str]()
    for node in graph.node:
        data = [name for name in node.input if name not in weights]
        passed = node.op_type in PASSING and node.input[0] in maps
        summed = node.op_type == "Add" and len(data) == 2 and set(data) <= maps
        if node.name not in kept and (has_weights(node, weights) or passed or summed):
            chosen.append(node.name)
            if node.op_type not in ("Gemm", "MatMul"):
                maps |= set(node.output)
    return chosen, maps


def has_weights(node: Any, weights: set[str]) -> bool:
    """Whether a node is a layer with weights that lie in the graph."""
    return node.op_type in WEIGHTED and node.input[1] in weights and node.input[0] not in weights


def _restore(graph: Any, chosen: set[str], maps: set[str]) -> None:
    """Let what stays in floating point read what it read before, where that is no map that exists in codes alone."""
    coded = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    rounded = {node.output[0]: coded.get(node.input[0]) for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.name not in chosen and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            found = [rounded.get(name) for name in node.input]
            node.input[:] = [
                plain if plain and plain not in maps else name for plain, name in zip(found, node.input, strict=True)
            ]


def _judge(graph: Any, kept: set[str]) -> tuple[int, list[str]]:
    """How many layers of a quantized graph have int8 arithmetic, and the names of those with weights that have not."""
    constants, codes = {weight.name for weight in graph.initializer}, set[str]()
    layers, left = 0, []
    for node in graph.node:
        given = [name for name in node.input if name]
        if node.op_type == "DequantizeLinear":
            codes |= set(node.output)
        elif given and set(given) <= constants:
            constants |= set(node.output)
        elif node.op_type in LAYERS and node.name not in kept:
            if set(given[:2]) <= codes:
                layers += 1
            elif set(given) & (constants | codes):
                left.append(node.name)
    return layers, left


def _floating(graph: Any, logits: Sequence[str]) -> set[str]:
    """Names of the nodes that stay in floating point: the layers that make logits, and all that reads logits."""
    made = {name: node for node in graph.node for name in node.output}
    kept, waiting = set[str](), list(logits)
    while waiting:
        node = made.get(waiting.pop())
        if node is not None and node.name not in kept:
            kept.add(node.name)
            waiting += () if node.op_type in WEIGHTED else node.input
    behind = set(logits)
    for node in graph.node:
        if behind & set(node.input):
            kept.add(node.name)
            behind |= set(node.output)
    return kept
