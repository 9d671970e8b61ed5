"""Options that several commands take, and lists in one text."""

from typing import Any

from eenet.errors import UserError
from eenet.parsing.refusals import Parser


def add_run(parser: Parser) -> None:
    """Let a command be told which run, and which checkpoint of it."""
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--ckpt_path", type=str, default="last", help="last, best (of the run's monitor) or a file")


def numbers(field: str, text: str) -> list[float]:
    """Numbers between commas.

    Raises:
        UserError: Something else is there.
    """
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(field, text, "must be numbers between commas, as 0.3,0.5") from error


def names(text: str) -> tuple[Any, ...]:
    """Names between commas, each once.

    Example:
        >>> names("common, per_exit,common")
        ('common', 'per_exit')
    """
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
