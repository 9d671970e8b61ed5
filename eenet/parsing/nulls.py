"""Values that are `null` where the signature of a class has no room for it, which jsonargparse lets pass."""

import inspect
import types
from typing import Any, Literal, get_args, get_origin

from jsonargparse import Namespace
from jsonargparse.typing import import_object

PLAIN = (bool, int, float, str, list, dict, tuple, Literal)
"""Types that are surely no `null`; of others nothing is said."""


def first_null(values: Any, key: str = "") -> tuple[str, str] | None:
    """The first `null` that a parsed configuration gives to what cannot take it: its key, and the type that it must be.

    Args:
        values: The configuration, or a part of it.
        key: Where that part is, as `model.init_args`.

    Example:
        >>> head = Namespace(class_path="eenet.inference_modules.MLPHead", init_args=Namespace(hidden=None))
        >>> first_null(head, "head")
        ('head.init_args.hidden', 'int')
    """
    parts = vars(values) if isinstance(values, Namespace) else values
    if isinstance(parts, list):
        parts = {str(place): part for place, part in enumerate(parts)}
    if not isinstance(parts, dict):
        return None
    given = parts.get("init_args")
    if "class_path" in parts and isinstance(given, Namespace):
        made = import_object(parts["class_path"])
        for name in (name for name, value in vars(given).items() if value is None):
            if kind := never_null(made, name):
                return f"{key}.init_args.{name}", kind
    found = (first_null(part, f"{key}.{name}".lstrip(".")) for name, part in parts.items())
    return next(filter(None, found), None)


def never_null(made: Any, name: str) -> str | None:
    """The type of a parameter, of a class or of those that it passes arguments on to, that cannot be `None`.

    Example:
        >>> class Made:
        ...     def __init__(self, share: float, most: int | None = None, other: "float" = None): ...
        >>> [never_null(Made, name) for name in ("share", "most", "other", "else")]
        ['float', None, None, None]
    """
    for owner in inspect.getmro(made) if isinstance(made, type) else (made,):
        parameter = inspect.signature(owner).parameters.get(name)
        if parameter is not None:
            own = parameter.annotation
            kinds = get_args(own) if isinstance(own, types.UnionType) else (own,)
            plain = all((get_origin(kind) or kind) in PLAIN for kind in kinds)
            return " or ".join(map(said, kinds)) if plain and parameter.default is not None else None
    return None


def said(kind: Any) -> str:
    """A type as refusals name it: `float`, `list`, or the values of a literal."""
    return ", ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else (get_origin(kind) or kind).__name__
