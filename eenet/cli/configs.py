"""The shipped configurations: found beside the sources or inside the installed package, by path or by name."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import yaml

import eenet
from eenet.errors import UserError

_PACKAGE = Path(eenet.__file__).parent
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
"""Folder of the configurations; a wheel holds it inside the package."""

CONFIG = ("--config", "-c")

OPTIONS = (*CONFIG, "--data")
"""Options that take a configuration; `--data` may also take something else."""


def names() -> list[str]:
    """Names of all shipped configurations, as `digits/vit_jei_dnn`."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml"))


def find_config(text: str) -> Path | None:
    """The configuration that a path or a name means.

    A file that exists is itself; `digits/vit_jei_dnn`, with or without `configs/` and `.yaml`, is a shipped one.

    Example:
        >>> find_config("digits/vit_jei_dnn").name, find_config("nowhere")
        ('vit_jei_dnn.yaml', None)
    """
    shipped = CONFIGS / text.removeprefix("configs/")
    candidates = (Path(text), shipped, shipped.with_name(f"{shipped.name}.yaml"))
    return next(filter(Path.is_file, candidates), None)


def check_yaml(path: Path) -> None:
    """Refuse a configuration that cannot be read.

    Raises:
        UserError: It is no YAML, or holds no keys and values.
    """
    try:
        values = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError("config", str(path), f"{where}{said}; this is no YAML") from error
    if not isinstance(values, dict):
        raise UserError("config", str(path), "must hold keys and values, as `trainer:` and `model:`")


def with_paths(args: list[str]) -> list[str]:
    """Arguments of a command, with the paths of the configurations that they name.

    Raises:
        UserError: A configuration is neither a file nor shipped.
    """
    return list(_with_paths(args))


def with_own(args: list[str]) -> list[str]:
    """Arguments with the configurations that runs saved put in the place of their paths; see `eenet.runs.load_config`.

    Args:
        args: What `with_paths` returns.
    """
    found = list(args)
    for i, text in enumerate(found):
        name, equals, value = text.partition("=")
        if text in CONFIG and i + 1 < len(found):
            found[i + 1] = _inline(found[i + 1])
        elif name in CONFIG and equals:
            found[i] = f"{name}={_inline(value)}"
    return found


def _inline(text: str) -> str:
    from eenet.runs.paths import is_own, load_config

    if not os.path.isfile(text):
        return text
    values = load_config(Path(text))
    return yaml.safe_dump(values, sort_keys=False) if is_own(values) else text


def _with_paths(args: list[str]) -> Iterator[str]:
    option = ""
    for text in args:
        name, equals, value = text.partition("=")
        if option:
            yield _path(option, text)
            option = ""
        elif name in OPTIONS and equals:
            yield f"{name}={_path(name, value)}"
        else:
            yield text
            option = text if text in OPTIONS else ""


def _path(option: str, text: str) -> str:
    found = find_config(text)
    if found is not None:
        if option != "--data":
            check_yaml(found)
        return str(found)
    if option == "--data" or ":" in text:  # a class, or YAML itself
        return text
    near = get_close_matches(text.removeprefix("configs/").removesuffix(".yaml"), names(), n=1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    raise UserError("config", text, f"is no file and no shipped configuration{meant} `eenet list` prints them")
