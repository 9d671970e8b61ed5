"""Configurations that go on meaning the same files, from any directory and after their run was moved or copied.

A saved configuration holds `trainer.default_root_dir: .`: the run is where the file lies. A path inside the run folder
is kept relative to it, any other absolute. Arguments are paths if they are annotated as in `eenet.files`,
or with `pathlib.Path` or `os.PathLike`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from eenet.described import argument_hints, type_hints
from eenet.files import FilePath, NameOrFile, NameOrPath, is_path
from eenet.reading import read_yaml
from eenet.runs.folder import RunFolder
from eenet.runs.trust import check_trust

HERE = "."

Change = Callable[[str, str], str]
"""Takes the value of an argument that may be a path, and what its annotation says; see `eenet.files`."""


def portable(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration as it is saved in a run's folder; see the module.

    Args:
        config: With `model`, `data` and `trainer`; relative paths are relative to the working directory.
        folder: The run's.
    """
    root = folder.absolute()

    def change(text: str, kind: str) -> str:
        if not is_path(kind, Path(text)):
            return text
        path = os.path.abspath(os.path.expanduser(text))
        inside = os.path.relpath(path, root)
        return path if inside.split(os.sep)[0] == os.pardir else inside

    changed = map_paths(config, change)
    return {**changed, "trainer": {**changed["trainer"], "default_root_dir": HERE}}


def load_config(path: Path) -> dict[str, Any]:
    """A configuration; a run's own, whose paths work from any directory, with its run folder where it lies.

    A run's own configuration is one that says so, or that lies beside a `checkpoints/last.ckpt` as `config.yaml`.

    Raises:
        UserError: It is no YAML of keys and values, or a run's own names a class that is not trusted; see
            `eenet.runs.trust`.
    """
    values = read_yaml(path)
    folder = path.parent.absolute()
    trainer = values.get("trainer")
    if not isinstance(trainer, dict):
        return values

    def change(text: str, kind: str) -> str:
        return os.path.normpath(folder / text) if is_path(kind, folder / text) else text

    saved = trainer.get("default_root_dir") == HERE
    if not saved and not (path.name == "config.yaml" and RunFolder(folder).last.is_file()):
        return values
    check_trust(values, path)
    if saved:
        values = map_paths(values, change)
    return {**values, "ckpt_path": None, "trainer": {**values["trainer"], "default_root_dir": str(folder)}}


def is_own(values: Any) -> bool:
    """Whether `load_config` found a run's own configuration."""
    return isinstance(values, dict) and "ckpt_path" in values


def map_paths(value: Any, change: Change, hint: Any = None) -> Any:
    """A configuration with its paths changed.

    Args:
        value: A configuration, or a value in one.
        change: What is done to a path.
        hint: The annotation of the argument that the value is for.
    """
    if isinstance(value, Mapping):
        if "class_path" in value:
            hints = class_hints(value["class_path"])
            parts = {key: value[key] or {} for key in ("init_args", "dict_kwargs") if key in value}
            return {**value, **{key: _map_arguments(part, change, hints) for key, part in parts.items()}}
        return _map_arguments(value, change, dataclass_hints(hint))
    if isinstance(value, list):
        return [map_paths(item, change, hint) for item in value]
    if isinstance(value, str) and (kind := path_kind(hint)) is not None:
        return change(value, kind)
    return value


def _map_arguments(values: Mapping[str, Any], change: Change, hints: Mapping[str, Any]) -> dict[str, Any]:
    return {key: map_paths(value, change, hints.get(key)) for key, value in values.items()}


def class_hints(class_path: str) -> dict[str, Any]:
    """Annotations of the arguments of what a configuration names."""
    module, _, name = class_path.rpartition(".")
    try:
        made = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return {}
    return argument_hints(made) if isinstance(made, type) else type_hints(made)


def dataclass_hints(hint: Any) -> dict[str, Any]:
    """Annotations of the fields of the dataclasses in an annotation."""
    hints: dict[str, Any] = {}
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and is_dataclass(kind):
            hints |= type_hints(kind)
    return hints


def path_kind(hint: Any) -> str | None:
    """Whether an annotation, or one of a union, is of a path.

    Example:
        >>> path_kind(FilePath | None), path_kind(bool | NameOrPath), path_kind(Path), path_kind(str)
        ('path', 'name or path', 'path', None)
    """
    for kind in (hint, *get_args(hint)):
        if kind in (FilePath, NameOrPath, NameOrFile):
            return kind.__metadata__[0]
        if isinstance(kind, type) and issubclass(kind, os.PathLike):
            return "path"
    return None
