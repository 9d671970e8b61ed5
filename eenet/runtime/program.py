"""A step of an exported network: tensor operations from a JSON file, run without the model's code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.errors import UserError, said
from eenet.runtime.operators import OPERATORS

DTYPES = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
}
MEMORY_FORMATS = {name: getattr(torch, name) for name in ("contiguous_format", "preserve_format", "channels_last")}
LARGEST = 2**63
LARGEST_OPERATIONS = 100_000
LARGEST_RESULT = 2**26
"""Numbers in one result for one row, beside as many as the inputs and weights have."""
META = torch.device("meta")

REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What operations raise that get wrong arguments."""


class Value(NamedTuple):
    """What an input, a weight or an earlier operation gave, by its number in this order."""

    number: int


class Operation(NamedTuple):
    """One operation, and the values that nobody needs after it."""

    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    done: list[int]


class Program:
    """Operations of `OPERATORS` alone, in the order in which they run.

    Its JSON has `inputs`, their number; `weights`, names; `operations`, each `[name, args, kwargs]`; and `outputs`. A
    value is a plain JSON value, or an object of one key: `value` (a number, counted over inputs, weights and
    operations), `dtype`, `memory_format`, `device` (that of the weights, whatever it says) or `number` (an infinite
    one).

    Args:
        source: The file, for messages.
        content: What it holds.
        weights: Tensors by name.
        device: Where it runs.

    Raises:
        UserError: The content is not of this form, or asks for an operation or a weight that is not there.
    """

    def __init__(self, source: str, content: Any, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.source, self.device = source, device
        try:
            self.inputs = _whole(content["inputs"])
            self.weights = [weights[name] for name in content["weights"]]
            known = self.inputs + len(self.weights)
            if len(content["operations"]) > LARGEST_OPERATIONS:
                raise ValueError(f"{len(content['operations'])} operations are more than {LARGEST_OPERATIONS}")
            operations = []
            for place, (name, args, kwargs) in enumerate(content["operations"], known):
                if type(args) is not list:
                    raise TypeError(f"the arguments of {name} are no list")
                named = {key: self._decode(value, place) for key, value in kwargs.items()}
                operations.append((_function(name), self._decode(args, place), named))
            self.outputs = self._decode(content["outputs"], known + len(operations))
            if type(self.outputs) is not list:
                raise TypeError("outputs are no list")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError("export", source, f"is no program that may be run ({said(error)})") from error
        self.operations = _with_lifetimes(operations, self.outputs, known)

    def __call__(self, *inputs: Tensor) -> list[Any]:
        """Run it; a `UserError` where an operation refuses its arguments."""
        values: list[Any] = [*inputs, *self.weights]
        if len(inputs) != self.inputs:
            raise UserError("export", self.source, f"takes {self.inputs} tensors and is given {len(inputs)}")
        try:
            for function, args, kwargs, done in self.operations:
                filled = {key: _fill(value, values) for key, value in kwargs.items()} if kwargs else kwargs
                values.append(function(*[_fill(value, values) for value in args], **filled))
                for number in done:
                    values[number] = None
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            raise UserError("export", self.source, f"cannot be run on these inputs ({said(error)})") from error
        return [_fill(value, values) for value in self.outputs]

    def bound(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Refuse a program whose work does not follow from its inputs, by its shapes alone and before it is run.

        Args:
            inputs: Without content, on the device `meta`.

        Returns:
            What it gives, without content; nothing where shapes alone do not say it.

        Raises:
            UserError: A result is larger than any of an exported network.
        """
        values: list[Any] = [*inputs, *(weight.to("meta") for weight in self.weights)]
        largest = LARGEST_RESULT + sum(value.numel() for value in values if isinstance(value, Tensor))
        for function, args, kwargs, done in self.operations:
            filled = {key: _fill(value, values, META) for key, value in kwargs.items()}
            try:
                result = function(*[_fill(value, values, META) for value in args], **filled)
            except REFUSALS:
                return []  # an operation that needs content, or that will be refused when it is run
            if any(part.numel() > largest for part in pytree.tree_leaves(result) if isinstance(part, Tensor)):
                problem = f"{function} asks for more than {largest} numbers; no exported network does"
                raise UserError("export", self.source, problem)
            values.append(result)
            for number in done:
                values[number] = None
        return [_fill(value, values, META) for value in self.outputs]

    def _decode(self, value: Any, known: int) -> Any:
        if isinstance(value, list):
            return [self._decode(item, known) for item in value]
        if not isinstance(value, dict):
            return value if not isinstance(value, int) or abs(value) < LARGEST else _whole(value)
        ((kind, content),) = value.items()
        if kind == "value":
            if _whole(content) >= known:
                raise ValueError(f"value {content} is not known at {known}")
            return Value(content)
        if kind == "device":
            return self.device
        if kind == "number":
            return {"inf": float("inf"), "-inf": float("-inf")}[content]
        return {"dtype": DTYPES, "memory_format": MEMORY_FORMATS}[kind][content]


def _function(name: str) -> Callable[..., Any]:
    if name not in OPERATORS:
        raise ValueError(f"{name!r} is not among the operations that an exported program may use")
    space, _, overload = name.partition(".")
    if space == "python":
        return PYTHON[overload]
    base, _, overload = overload.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload)


def _sizes_only(function: Callable[..., Any]) -> Any:
    def on_sizes(*numbers: int) -> int:
        if any(type(number) is not int for number in numbers):
            raise TypeError(f"{function.__name__} of something that is no size")
        found = function(*numbers)
        if abs(found) >= LARGEST:
            raise OverflowError(f"{function.__name__} gives no size")
        return found

    return on_sizes


PYTHON: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    **{name: _sizes_only(getattr(operator, name)) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")},
}
"""Arithmetic on sizes of the batch, and picking one of several results."""


def _fill(value: Any, values: Sequence[Any], device: torch.device | None = None) -> Any:
    if type(value) is Value:
        return values[value.number]
    if type(value) is list:
        return [_fill(item, values, device) for item in value]
    return device if device is not None and type(value) is torch.device else value


def _with_lifetimes(
    operations: list[tuple[Any, list[Any], dict[str, Any]]], outputs: Any, known: int
) -> list[Operation]:
    """The operations with the values that can be let go after each; inputs and weights are kept."""
    kept, last = set(_numbers(outputs)), dict[int, int]()
    for place, (_, args, kwargs) in enumerate(operations):
        for number in (known + place, *_numbers([args, *kwargs.values()])):
            last[number] = place
    done: list[list[int]] = [[] for _ in operations]
    for number, place in last.items():
        if number >= known and number not in kept:
            done[place].append(number)
    return [Operation(*operation, done[place]) for place, operation in enumerate(operations)]


def _numbers(value: Any) -> list[int]:
    if type(value) is Value:
        return [value.number]
    return [number for item in value for number in _numbers(item)] if type(value) is list else []


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"{value!r} is no whole number from 0 to {LARGEST}")
    return value
