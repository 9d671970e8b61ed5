"""Entry point: run a command, and print a user's mistake as one line instead of a traceback."""

import sys
import warnings
from collections.abc import Sequence

from eenet.errors import UserError


def main(args: Sequence[str] | None = None) -> None:
    """Run the `eenet` command.

    Args:
        args: Arguments; those of the process when `None`.

    Raises:
        SystemExit: With status 2 after a user's mistake.
    """
    from eenet.cli.lightning import EenetCLI

    for expected in ("Found .* in eval mode", ".*LeafSpec.* is deprecated", ".*does not have many workers"):
        warnings.filterwarnings("ignore", expected)
    try:
        EenetCLI(args=None if args is None else list(args))
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            raise
        print(f"eenet: error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from error


def users_mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake that caused an exception, if one did; jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
