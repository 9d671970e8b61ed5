"""Reading text, JSON and YAML, all of it in UTF-8, with one line where it is none."""

import json
import pickle
from pathlib import Path
from typing import Any

import yaml

from eenet.errors import DamagedError, UserError

UNREADABLE = (
    *(pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
"""What torch raises on a file that it cannot read."""


def read_text(path: Path) -> str:
    """The text in a file, in UTF-8 whatever the locale; an `OSError` or, where it is no such text, a `DamagedError`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError("file", str(path), f"is no text in UTF-8 ({error}); save it as such") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file; an `OSError` or, for no JSON in UTF-8 or too deep nesting, a `DamagedError`."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError("file", str(path), f"is damaged ({error}); remove it, or take a whole copy") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a configuration; a `UserError` where it is no YAML in UTF-8, or holds none."""
    text = read_text(path)
    try:
        values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError("config", str(path), f"{where}{said}; this is no YAML") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError("config", str(path), "must hold keys and values, as `trainer:` and `model:`")
    return values
