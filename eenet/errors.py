"""The one error that a user's mistake raises, printed without a traceback, and how it quotes commands."""

import shlex

NOT_MET = "eenet: not met: "
"""What a line begins with that says which wish could not be met."""


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


class UnmetError(UserError):
    """A wish that makes sense and that the data or the network cannot meet; wishes beside it may be met."""
