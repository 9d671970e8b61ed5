"""Names of a package that are imported when they are used, and classes that get a base when an object is made.

What opens a run needs its network, its points and its data, and not what trains them, whose import takes seconds. So
routines and data modules name Lightning's classes and become theirs when an object is made, but inside `without`.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

EXPECTED = (
    "Found .* in eval mode",
    ".*LeafSpec.* is deprecated",
    ".*does not have many workers",
    "The dirpath has changed",
)
"""What Lightning warns of though it is as it should be."""

_WITHOUT = ContextVar("without", default=False)


def lazily(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: a name comes from where the package's block for type checkers imports it.

    Example:
        >>> lazily("eenet")("load").__module__
        'eenet.runtime.load'
    """

    @cache
    def homes() -> dict[str, str | None]:
        nodes = ast.walk(ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")))
        return {alias.name: node.module for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}

    def get(name: str) -> Any:
        if name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(str(homes()[name])), name)

    return get


class Late:
    """A class whose objects are also of a class that is imported when they are made.

    Attributes:
        late: Path of that class.

    Example:
        >>> from argparse import Namespace
        >>> class Table(Late):
        ...     late = "argparse.Namespace"
        >>> with without():
        ...     isinstance(Table(), Namespace)
        False
        >>> isinstance(Table(), Namespace), isinstance(Table(), Table), type(Table()).__name__
        (True, True, 'Table')
    """

    late: ClassVar[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """An object with the class's late base."""
        return super().__new__(cls if _WITHOUT.get() else _with_base(cls))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle it as of the class that can be imported."""
        made = super().__reduce_ex__(protocol)
        cls = type(self)
        return (_make, (vars(cls).get("_written", cls),), *made[2:]) if isinstance(made, tuple) else made


@contextmanager
def without() -> Iterator[None]:
    """Make objects without their late bases."""
    token = _WITHOUT.set(True)
    try:
        yield
    finally:
        _WITHOUT.reset(token)


@cache
def _with_base(cls: Any) -> type:
    module, _, name = cls.late.rpartition(".")
    base = getattr(import_module(module), name)
    if issubclass(cls, base):
        return cls
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, "_written": cls}
    return type(cls)(cls.__name__, (cls, base), names)


def _make(cls: Any) -> Any:
    return cls.__new__(cls)
