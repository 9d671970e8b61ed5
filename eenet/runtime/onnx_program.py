"""A step of an exported network as an ONNX file, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError, said
from eenet.runtime.manifest import WEIGHTS

LARGEST_PROGRAM = 64 << 20
"""Bytes of an ONNX file, whose weights are elsewhere."""

CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")


class OnnxProgram:
    """Runs one file, after looking into it: standard operators, and no data outside of the folder's weights.

    Args:
        path: The file; its weights lie in `weights.safetensors` beside it.

    Raises:
        UserError: A package is missing, or the file is damaged or asks for more.
    """

    def __init__(self, path: Path) -> None:
        check(path)
        self.session = make_session(path)
        self.source, self.names = str(path), [entry.name for entry in self.session.get_inputs()]
        if not all(re.fullmatch(r"input_[0-9]{1,4}", name) for name in self.names):
            problem = f"has the inputs {', '.join(self.names)}; they must be input_0, input_1, ..."
            raise UserError("export", str(path), problem)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run it, inputs by their place, but none that nothing reads; a `UserError` where ONNX Runtime refuses them."""
        try:
            return [torch.from_numpy(result) for result in self.session.run(None, feed(self.names, inputs))]
        except Exception as error:
            raise UserError("export", self.source, f"cannot be run on these inputs ({said(error)})") from error


def place_of(name: str) -> int:
    """Place of an input that is called by it, as `input_0`."""
    return int(name.removeprefix("input_"))


def feed(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Any]:
    """What a session with inputs of these names is given."""
    return {name: tensors[place_of(name)].numpy() for name in names}


def make_session(model: Path | bytes, sizes: Mapping[str, int] | None = None) -> Any:
    """An ONNX Runtime session on the processor, with torch's number of threads.

    Args:
        model: Its file, or the file's content.
        sizes: Lengths of named axes that are always the same.

    Raises:
        UserError: ONNX Runtime refuses the file.
    """
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    given = model if isinstance(model, bytes) else str(model)
    try:
        return runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # its exceptions have no common class
        source = "a model" if isinstance(model, bytes) else str(model)
        raise UserError("export", source, f"ONNX Runtime refuses it ({said(error)})") from error


def check(path: Path, largest: int = LARGEST_PROGRAM, branches: Callable[[Any], str] | None = None) -> None:
    """Refuse operators beyond the ONNX standard, functions, control flow, and data in any other file than the weights.

    Args:
        path: The file.
        largest: Bytes that it may have.
        branches: Says what is wrong with the control flow of a graph, or nothing; by default all is.

    Raises:
        UserError: A package is missing; or naming the file and what it asks for.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError("export", str(path), f"needs {package}: pip install 'eenet[export]'")
    if path.stat().st_size > largest:
        raise UserError("export", str(path), f"is larger than {largest} bytes; no export is")
    onnx: Any = import_module("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise UserError("export", str(path), f"is no ONNX file ({type(error).__name__})") from error
    for message in messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "FunctionProto" or (kind == "NodeProto" and message.domain not in ("", "ai.onnx")):
            asked = f"{message.domain}.{message.name if kind == 'FunctionProto' else message.op_type}"
            raise UserError("export", str(path), f"asks for {asked}, which is no operator of the ONNX standard")
        if kind == "NodeProto" and message.op_type in CONTROL_FLOW and (branches is None or message.op_type != "If"):
            raise UserError("export", str(path), f"asks for {message.op_type}; no exported step has control flow")
        if kind == "TensorProto":
            for entry in message.external_data:
                if entry.key == "location" and entry.value != WEIGHTS:
                    raise UserError("export", str(path), f"reads {entry.value!r}; its data may lie in {WEIGHTS} alone")
    if branches is not None and (problem := branches(model.graph)):
        raise UserError("export", str(path), f"{problem}; no export of eenet has such control flow")


def messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from messages(part)
