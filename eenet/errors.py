"""The one error that a user's mistake raises, printed without a traceback, and how it quotes, lists and shortens."""

import shlex
from collections.abc import Iterable

NOT_MET = "eenet: not met: "
"""What a line begins with that says which wish could not be met."""

WHERE = "EENET_DEBUG=1 shows where"
"""How a line ends that stands for an error of somebody's code."""


class UserError(Exception):
    """A value that cannot be used: says which field, what it holds and what would be right.

    Args:
        field: Name of the configuration field or argument, as the user writes it.
        value: What it holds.
        problem: What is wrong with it, and the remedy.

    Example:
        >>> raise UserError("model.tradeoff", -1.0, "must be at least 0")
        Traceback (most recent call last):
        eenet.errors.UserError: model.tradeoff = -1.0: must be at least 0
    """

    def __init__(self, field: str, value: object, problem: str) -> None:
        self.field, self.value, self.problem = field, value, problem
        super().__init__(f"{field} = {value!r}: {problem}")

    def __reduce__(self) -> tuple:
        return type(self), (self.field, self.value, self.problem)


def command(*words: object) -> str:
    """A command of eenet between backticks, quoted so that a shell takes it.

    Example:
        >>> command("calibrate", "my runs/a", "--budget", 0.5)
        "`eenet calibrate 'my runs/a' --budget 0.5`"
    """
    return f"`{shlex.join(['eenet', *map(str, words)])}`"


def some(values: Iterable[object], most: int = 3) -> str:
    """Some values between commas, and how many more there are.

    Example:
        >>> some([1, 2, 3, 4, 5])
        '1, 2, 3 and 2 more'
    """
    listed = list(map(str, values))
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def said(error: Exception, most: int = 300) -> str:
    r"""A library's error, or the one behind a damaged file, in one line of so many characters.

    Example:
        >>> said(ValueError("two\nlines"))
        'ValueError: two lines'
    """
    error = error.__cause__ if isinstance(error, DamagedError) and isinstance(error.__cause__, Exception) else error
    text = f"{type(error).__name__}: {error}"
    if "Original Traceback" in text:  # of a loader's process, which ends in what was raised there
        text = text.strip().splitlines()[-1]
    return " ".join(text.split())[:most]


class DamagedError(UserError, ValueError):
    """A file that does not hold what it should; a `ValueError`, so that who knows more of the file may say more."""


class UnmetError(UserError):
    """A wish that makes sense and that the data or the network cannot meet; wishes beside it may be met."""


class Unreadable(Exception):
    """One input of many that cannot be read, and why."""
