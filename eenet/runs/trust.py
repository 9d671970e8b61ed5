"""Which classes a run's own configuration may name: opening a run that came from elsewhere runs nobody else's code.

A configuration that a user writes is the user's program, and may name anything. That of a run's folder may come from a
stranger, so its classes are looked at before one of them is imported.
"""

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from eenet.errors import UserError

VARIABLE = "EENET_TRUST"
"""Environment variable with packages, modules or classes that the user trusts, separated by commas."""

PACKAGES = (
    "eenet",
    "lightning_modules",
    "datamodules",
    "torch",
    "lightning",
    "pytorch_lightning",
    "torchvision",
    "timm",
    "transformers",
)
"""Packages whose classes may be named."""

OWN = ("eenet", "lightning_modules", "datamodules")

DEFAULTS = (
    *("torch.optim.SGD", "torch.optim.sgd.SGD", "torch.optim.Adam", "torch.optim.adam.Adam"),
    *("torch.optim.AdamW", "torch.optim.adamw.AdamW"),
    *("eenet.features.FeatureOptions", "eenet.features.options.FeatureOptions"),
)
"""What routines take where a configuration names nothing, and how features are kept."""

WRITERS = (
    *(
        "eenet.api",
        "eenet.cli",
        "eenet.decoding.store",
        "eenet.exporting",
        "eenet.features",
        "eenet.files",
        "eenet.hub",
    ),
    *("eenet.reporting", "eenet.runs"),
)
"""Where in eenet files are written: no part of a network is defined there."""

ROOMS = (
    *(*OWN, "torch.nn", "torch.optim", "torch.ao", "torchvision.transforms"),
    *("torchvision.models", "torchvision.ops", "timm.models", "timm.layers", "timm.optim", "timm.scheduler"),
    *("timm.loss", "transformers.models", "transformers.optimization"),
    *(
        f"{package}.{room}"
        for package in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")
        for room in ("callbacks", "loggers", "profilers", "strategies", "plugins", "accelerators")
    ),
)
"""Where in them classes are defined that are parts of a network or of its training; others start processes."""


def named() -> list[str]:
    """What the user trusts beside these."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def trust(name: str) -> None:
    """Trust one more package, module or class, in the processes that this one starts too."""
    os.environ[VARIABLE] = ",".join([*named(), name])


def check_trust(values: Any, source: Path) -> list[str]:
    """Refuse a run's configuration that names what is not trusted, before any of it is imported.

    Args:
        values: The configuration.
        source: Its file.

    Returns:
        Every path of a class in it, and where that class is defined.

    Raises:
        UserError: The first class that is not trusted.
    """
    return [path for key, text in class_paths(values) for path in _check(key, text, source)]


def class_paths(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every `class_path` of a configuration, with its key.

    Example:
        >>> list(class_paths({"model": {"class_path": "a.B", "init_args": {"parts": [{"class_path": "c.D"}]}}}))
        [('model', 'a.B'), ('model.init_args.parts', 'c.D')]
    """
    if isinstance(values, Mapping):
        if "class_path" in values:
            yield key, values["class_path"]
        for name, value in values.items():
            yield from class_paths(value, f"{key}.{name}".lstrip("."))
    elif isinstance(values, list):
        for value in values:
            yield from class_paths(value, key)


def _check(key: str, text: Any, source: Path) -> list[str]:
    parts = text.split(".") if isinstance(text, str) else [""]
    if not all(map(str.isidentifier, parts)):
        raise UserError(key, text, f"is no path of a class; see {source}")
    if under(text, named()) or text in DEFAULTS:
        return [text]
    if not under(text, PACKAGES) or any(part.startswith("_") for part in parts):
        raise _refusal(key, text, source)
    found = _find(text)
    if found is None:  # whoever makes the object says so, with the names that are near
        return []
    defined = _defined(found)
    if not isinstance(found, type) or under(defined, WRITERS) or not under(defined, (*ROOMS, *named())):
        raise _refusal(key, text, source)
    return [text, defined]


def of_user(text: str) -> list[str]:
    """A path of a class that the user's own arguments name, and where the class is defined; others are not imported."""
    found = _find(text) if under(text, PACKAGES) else None
    return [text] if found is None else [text, _defined(found)]


def _defined(found: Any) -> str:
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"


def under(path: str, names: list[str] | tuple[str, ...]) -> bool:
    """Whether a path is one of some packages, modules or classes, or lies in one.

    Example:
        >>> under("torch.nn.Linear", ["torch"]), under("torchdata.X", ["torch"])
        (True, False)
    """
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _find(text: str) -> Any:
    module, _, name = text.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _refusal(key: str, text: str, source: Path) -> UserError:
    package = text.partition(".")[0]
    known = text if package in PACKAGES else package
    return UserError(
        key,
        text,
        f"is not trusted, as {source} may come from a stranger, and nothing of it was run; if you know its code, give "
        f"--trust {known} or set {VARIABLE}={known}",
    )
