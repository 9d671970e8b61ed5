"""What long work shows of itself."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from eenet.rank_zero import rank_zero_only

T = TypeVar("T")


def tracked(items: Iterable[T], what: str, total: int | None = None, console: Console | None = None) -> Iterator[T]:
    """Items in order, behind a line with a bar and the time left, which goes when they are done.

    The line is on the standard error of the first process, where that is a terminal.

    Args:
        items: What is worked through.
        what: Is done with them.
        total: How many there are, of items without a length.
        console: Instead.

    Example:
        >>> list(tracked(range(3), "counting"))
        [0, 1, 2]
    """
    console = console or Console(stderr=True)
    hidden = rank_zero_only.rank > 0 or not console.is_terminal  # type: ignore[attr-defined]
    yield from track(items, what, total, console=console, transient=True, disable=hidden)
