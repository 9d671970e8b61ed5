"""The shipped configurations: found beside the sources or inside the installed package, by path or by name."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import yaml

import eenet
from eenet.errors import UserError
from eenet.reading import read_text, read_yaml

_PACKAGE = Path(eenet.__file__).parent
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
"""Folder of the configurations; a wheel holds it inside the package."""

CONFIG = ("--config", "-c")

DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
"""What may be the path of a class, in a text of the user's own."""

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


def with_paths(args: list[str]) -> list[str]:
    """Arguments with the paths of the configurations that they name; a `UserError` where one is not there."""
    return list(_with_paths(args))


def with_own(args: list[str]) -> tuple[list[str], list[str] | None]:
    """Arguments with the configurations that runs saved put in the place of their paths; see `eenet.runs.load_config`.

    Args:
        args: What `with_paths` returns.

    Returns:
        The arguments; and what they may import, `None` for anything, where no run's own configuration is among them.
    """
    from eenet.runs.paths import is_own, load_config
    from eenet.runs.trust import check_trust, of_user

    found, allowed, opens = list(args), list[str](), False
    for i, text in enumerate(found):
        name, equals, value = text.partition("=")
        given = equals and name in CONFIG
        path = value if given else text
        if not (given or (i and found[i - 1] in CONFIG)) or not os.path.isfile(path):
            allowed += DOTTED.findall(text)
        elif is_own(values := load_config(Path(path))):
            allowed, opens = [*allowed, *check_trust(values, Path(path))], True
            inlined = yaml.safe_dump(values, sort_keys=False)
            found[i] = f"{name}={inlined}" if given else inlined
        else:
            allowed += DOTTED.findall(read_text(Path(path)))
    return found, [path for name in allowed for path in of_user(name)] if opens else None


@contextmanager
def imports(allowed: list[str] | None) -> Iterator[None]:
    """Let jsonargparse import nothing by name but eenet's parts, some classes and what the user trusts.

    It is the second wall behind `eenet.runs.check_trust`, for names that stand elsewhere than in a `class_path`.

    Args:
        allowed: Paths of classes, `None` for anything.
    """
    from jsonargparse import _common, set_parsing_settings

    from eenet.runs.trust import DEFAULTS, OWN, WRITERS, named

    before = dict(_common.parsing_settings)  # there is no public way back
    if allowed is not None:
        names = [name for name in (*OWN, *DEFAULTS, *allowed, *named()) if not name.startswith("jsonargparse")]
        set_parsing_settings(import_path_denylist=["*", *WRITERS], import_path_allowlist=names)
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


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
            read_yaml(found)
        return str(found)
    if option == "--data" or ":" in text:  # a class, or YAML itself
        return text
    near = get_close_matches(text.removeprefix("configs/").removesuffix(".yaml"), names(), n=1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    raise UserError("config", text, f"is no file and no shipped configuration{meant} `eenet list` prints them")
