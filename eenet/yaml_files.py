"""Reading YAML of a user's, who is told where it is wrong."""

from pathlib import Path
from typing import Any

import yaml

from eenet.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a configuration.

    Raises:
        UserError: It is no YAML, or holds no keys and values.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError("config", str(path), f"{where}{said}; this is no YAML") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError("config", str(path), "must hold keys and values, as `trainer:` and `model:`")
    return values
