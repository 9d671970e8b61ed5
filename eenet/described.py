"""Objects that can be written down as a configuration, because they remember the arguments that they were made with."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from eenet.errors import UserError


class Described:
    """Remembers its constructor's arguments for `describe`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """An object that knows what it is about to be made with."""
        made = super().__new__(cls)
        made.__dict__["_given"] = (args, kwargs)
        return made


def describe(made: Any, placed: int = 0) -> dict[str, Any]:
    """An object as a configuration has it: `class_path`, and the `init_args` that differ from the defaults.

    Args:
        made: A `Described` object, or a dataclass.
        placed: Arguments by position that whoever calls the class gives, such as the width of a head.

    Raises:
        UserError: An argument, or the class, has no form in a configuration.

    Example:
        >>> from eenet.gates import ConfidenceGate
        >>> describe(ConfidenceGate(3, "margin"), placed=1)
        {'class_path': 'eenet.gates.confidence.ConfidenceGate', 'init_args': {'measure': 'margin'}}
    """
    if isinstance(made, Described):
        args, kwargs = made.__dict__["_given"]
        names = [name for name, at in inspect.signature(type(made)).parameters.items() if at.kind in PLACED]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: value for i, (name, value) in enumerate(given.items()) if i >= min(placed, len(args))}
        default = functools.partial(default_argument, type(made))
    elif not is_dataclass(made):
        raise UserError("class", type(made).__qualname__, "has no form in a file; use the classes of eenet")
    else:
        given = {field.name: getattr(made, field.name) for field in fields(made)}
        defaults = {field.name: field.default for field in fields(made)}
        default = defaults.get  # type: ignore[assignment]
    written = {}
    for name, value in given.items():
        plain = plain_value(value, name, made)
        usual = default(name)
        if usual is MISSING or plain != plain_value(usual, name, made):
            written[name] = plain
    return {"class_path": import_path(type(made)), "init_args": written}


PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def default_argument(made: type, name: str) -> Any:
    """The default of an argument of a class, or of one that it hands to a class it inherits from."""
    for base in made.__mro__:
        found = inspect.signature(base.__init__).parameters.get(name) if "__init__" in vars(base) else None  # type: ignore[misc]
        if found is not None:
            return MISSING if found.default is inspect.Parameter.empty else found.default
    return MISSING


def plain_value(value: Any, name: str, owner: Any) -> Any:
    """A value as a configuration has it.

    Args:
        value: Of an argument.
        name: Of the argument.
        owner: The object that was given it.

    Raises:
        UserError: It has no form in a configuration.
    """
    if value is None or value is MISSING or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_value(item, name, owner) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain_value(item, name, owner) for item in value]
    if isinstance(value, Described) or (is_dataclass(value) and not isinstance(value, type)):
        return describe(value)
    if callable(value):
        return describe_made(value, name, owner)
    raise UserError(name, type(value).__name__, f"an argument of {type(owner).__name__}: has no form in a file")


def describe_made(factory: Callable[..., Any], name: str, owner: Any) -> dict[str, Any]:
    """What a function such as `lambda params: SGD(params, lr=0.1)` makes, as a configuration has it.

    A part of a network is looked for in its owner, who made it; an optimizer is made once more, of one parameter.

    Raises:
        UserError: It makes something else.
    """
    takes, makes = get_args(argument_hints(type(owner)).get(name)) or ([], None)
    if makes is torch.optim.Optimizer:
        return describe_optimizer(factory, default_argument(type(owner), name))
    if isinstance(factory, type):
        return {"class_path": import_path(factory), "init_args": {}}
    if isinstance(owner, nn.Module) and isinstance(makes, type) and issubclass(makes, Described):
        for made in owner.modules():
            if isinstance(made, makes) and not made_of_factories(made):
                return describe(made, placed=len(takes))
    raise UserError(
        name,
        getattr(factory, "__qualname__", type(factory).__name__),
        f"an argument of {type(owner).__name__}: has no form in a file; give a class",
    )


def describe_optimizer(factory: Callable[..., Any], usual: Callable[..., Any]) -> dict[str, Any]:
    """What an optimizer is made with beside its class's defaults, and whatever the usual one has a value for.

    A configuration of another optimizer keeps those values of the usual one that it does not give itself.
    """
    made, other = (make([nn.Parameter(torch.zeros(1))]) for make in (factory, usual))
    known = inspect.signature(type(made).__init__).parameters
    values = {key: plain_value(value, key, made) for key, value in made.defaults.items() if key in known}
    told = {key for key, value in other.defaults.items() if value != default_argument(type(other), key)}
    given = {key: v for key, v in values.items() if key in told or v != plain_value(known[key].default, key, made)}
    return {"class_path": import_path(type(made)), "init_args": given}


def made_of_factories(made: Described) -> bool:
    """Whether an object was given what makes its parts, as heads of several widths are."""
    return any(callable(value) and not isinstance(value, nn.Module) for value in made.__dict__["_given"][0])


def argument_hints(made: type) -> dict[str, Any]:
    """Annotations of a class's arguments, and of those that it may hand to the classes it inherits from."""
    hints: dict[str, Any] = {}
    for base in reversed(made.__mro__):
        if "__init__" in vars(base):
            hints |= type_hints(base.__init__)  # type: ignore[misc]
    return hints


def type_hints(made: Any) -> dict[str, Any]:
    """Annotations of a function or of a dataclass's fields, none where they cannot be read."""
    try:
        return get_type_hints(made, include_extras=True)
    except (NameError, TypeError):
        return {}


def import_path(made: type) -> str:
    """Where a class is imported from.

    Raises:
        UserError: It is defined in a notebook, a script or a function.

    Example:
        >>> import_path(torch.nn.Linear)
        'torch.nn.modules.linear.Linear'
    """
    if made.__module__ == "__main__" or "<locals>" in made.__qualname__:
        raise UserError("class", made.__qualname__, "cannot be imported; put it into a module of its own")
    return f"{made.__module__}.{made.__qualname__}"
