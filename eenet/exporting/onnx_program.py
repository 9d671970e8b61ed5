"""Writing a traced step as an ONNX file whose weights lie in the folder's `weights.safetensors`."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx.node import map_arg

from eenet.errors import UserError
from eenet.runtime.manifest import WEIGHTS
from eenet.runtime.trace import Traced

LARGEST_CONSTANT = 256
"""Bytes of a constant that stays inside the ONNX file, such as an axis."""


OPSET = 20
"""Of the ONNX standard's operators."""


def require_packages() -> None:
    """Raise a `UserError` where a package that writes ONNX is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError("format", "onnx", f"needs {package}: pip install 'eenet[export]'")


@cache
def remember_translations() -> None:
    """Let torch get onnxscript's 1,500 translations and what they take once: it is a third of a step's time."""
    with suppress(ImportError, AttributeError):  # torch's own affair, which may move
        registration = import_module("torch.onnx._internal.exporter._registration")
        for module, name in (
            (registration.onnxscript_apis, "get_torchlib_ops"),
            (registration._schemas, "op_signature_from_function"),
        ):
            setattr(module, name, cache(getattr(module, name)))


def translate(step: Traced) -> tuple[Any, dict[str, Tensor]]:
    """A step as an ONNX model, and the weights that it reads; a `UserError` for an operation that ONNX lacks."""
    require_packages()
    remember_translations()
    names = [f"input_{place}" for place in range(len(step.tensors))]
    rewrite(step.program.graph_module)
    try:
        with quiet():
            exported = torch.onnx.export(
                step.program, step.tensors, input_names=names, dynamo=True, verbose=False, opset_version=OPSET
            )
    except Exception as error:  # its errors have no common class
        problem = f"the step to {step.name} has no form in ONNX ({type(error).__name__}); use --format torch"
        raise UserError("format", "onnx", problem) from error
    assert exported is not None
    model = exported.model
    weights = {
        f"{step.name}.{name}": torch.from_numpy(value.const_value.numpy().copy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > LARGEST_CONSTANT
    }
    return model, weights


def rewrite(module: GraphModule) -> None:
    """Put what the exporter does not take into other words, in place: the values stay what they are.

    A view of what attention returns is refused, as attention is taken apart into parts that lie otherwise in memory;
    so is attention over more or fewer axes than four, and a tensor that is taken from a number of another type.

    Args:
        module: A step's graph; its nodes say what tensors they give.
    """
    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target in (aten.view.default, aten.reshape.default):
            with module.graph.inserting_before(node):
                copy = module.graph.call_function(aten.clone.default, (node.args[0],))
                copy.kwargs = {"memory_format": torch.contiguous_format}
                node.update_arg(0, copy)
        elif node.target is aten.rsub.Scalar and len(node.args) == 2:
            with module.graph.inserting_before(node):
                opposite = module.graph.call_function(aten.neg.default, (node.args[0],))
            node.target, node.args = aten.add.Tensor, (opposite, node.args[1])
        elif node.target is aten.scaled_dot_product_attention.default:
            _over_four_axes(module.graph, node)
    module.recompile()


def _over_four_axes(graph: Graph, node: Any) -> None:
    """Let attention over other than four axes join or add axes before, and undo it behind."""
    reshape = torch.ops.aten.reshape.default
    shape, sizes = node.meta["val"].shape, [given.meta["val"].shape for given in node.all_input_nodes]
    mask = (*node.args[3:4], node.kwargs.get("attn_mask"))[0]
    # Rows of a larger mask are those of the queries where there are three axes of each.
    fits = mask is None or mask.meta["val"].ndim < 3 or {len(one) for one in sizes} == {3}
    known = all(isinstance(size, int) for one in (shape, *sizes) for size in one[1:])
    if len(shape) == 4 or not fits or not known:
        return

    def flat(given: Any) -> Any:
        sizes = given.meta["val"].shape
        return given if len(sizes) < 3 else graph.call_function(reshape, (given, [-1, *(1, *sizes[1:])[-3:]]))

    with graph.inserting_before(node):
        node.args, node.kwargs = map_arg(node.args, flat), map_arg(node.kwargs, flat)
    with graph.inserting_after(node):
        back = graph.call_function(reshape, (node, [-1, *shape[1:]]))
        back.meta["val"] = node.meta["val"]  # what it stood for; the next attention asks
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def save(step: str, model: Any, folder: Path, path: Path) -> None:
    """Write the ONNX file of a step, after its weights were written.

    Args:
        step: Name of the step.
        model: From `translate`.
        folder: Where `weights.safetensors` is.
        path: The file.
    """
    ir = import_module("onnx_ir")
    places = offsets(folder / WEIGHTS)
    for name, value in model.graph.initializers.items():
        if (place := places.get(f"{step}.{name}")) is not None:
            begin, length = place
            kept = value.const_value
            value.const_value = ir.ExternalTensor(
                WEIGHTS, begin, length, kept.dtype, name=name, shape=kept.shape, base_dir=folder
            )
    ir.save(model, path)


def offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file lies: first byte, counted from the head of the file, and bytes."""
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(head))
    entries.pop("__metadata__", None)
    return {
        name: (8 + head + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in entries.items()
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
