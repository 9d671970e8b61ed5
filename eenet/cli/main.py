"""Entry point: run a command, and print a user's mistake as one line instead of a traceback."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from eenet.errors import UserError

COMMANDS = {
    "calibrate": "eenet.cli.calibrate",
    "compare": "eenet.cli.compare",
    "features": "eenet.cli.features",
    "layers": "eenet.cli.layers",
    "generate": "eenet.cli.generate",
    "sweep": "eenet.cli.sweep",
}
"""Modules of the commands beside Lightning's; each has a `main(args)`."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the `eenet` command.

    Args:
        args: Arguments; those of the process when `None`.

    Raises:
        SystemExit: With status 2 after a user's mistake.
    """
    for expected in ("Found .* in eval mode", ".*LeafSpec.* is deprecated", ".*does not have many workers"):
        warnings.filterwarnings("ignore", expected)
    try:
        run(args)
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            raise
        print(f"eenet: error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from error


def run(args: Sequence[str] | None) -> None:
    """Hand the arguments to their command; the ones not in `COMMANDS` are Lightning's."""
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in COMMANDS:
        import_module(COMMANDS[given[0]]).main(given[1:])
    else:
        from eenet.cli.lightning import EenetCLI

        EenetCLI(args=None if args is None else given)


def users_mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake that caused an exception, if one did; jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
