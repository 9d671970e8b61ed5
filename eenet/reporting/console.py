"""Tables on a terminal of any width, with no figure cut."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 140
"""Columns where there is no terminal."""

BETWEEN = 3
"""Columns that a border and the space around a cell take."""


def make_console() -> Console:
    """A console as wide as its terminal, or wide enough for most tables where there is none."""
    return Console(width=None if Console().is_terminal else WIDTH)


def show(*tables: Table, console: Console | None = None) -> None:
    """Print tables of figures; what is wider than the console comes in parts below each other."""
    console = console or make_console()
    for table in tables:
        console.print(*in_parts(table, console.width))


def tell(*lines: str, console: Console | None = None) -> None:
    """Print lines as they are: none is broken, so that a path can be copied, and brackets are no markup."""
    for line in lines:
        (console or make_console()).print(line, soft_wrap=True, highlight=False, markup=False)


def in_parts(table: Table, width: int) -> list[Table]:
    """The columns of a table in as few tables as fit, each of which begins with the first column.

    Args:
        table: Of figures and short names, at least two columns.
        width: Of the terminal. One column beside the first is kept however wide they are.

    Example:
        >>> table = Table("exit", "accuracy %", "NLL", "ECE %")
        >>> table.add_row("exit 0", "92.50", "0.343", "4.44")
        >>> [[str(column.header) for column in part.columns] for part in in_parts(table, 34)]
        [['exit', 'accuracy %', 'NLL'], ['exit', 'ECE %']]
    """
    first, *sizes = [_size(column.header, *column.cells) for column in table.columns]
    groups: list[list[int]] = [[]]
    left = room = width - 1 - first
    for number, size in enumerate(sizes, start=1):
        if groups[-1] and size > left:
            groups.append([])
            left = room
        groups[-1].append(number)
        left -= size
    parts = []
    for group in groups:
        title, caption = table.title if group is groups[0] else None, table.caption if group is groups[-1] else None
        part = Table(title=title, caption=caption, caption_justify=table.caption_justify)
        chosen = [table.columns[number] for number in (0, *group)]
        for column in chosen:
            part.add_column(column.header, justify=column.justify, no_wrap=True)
        cells = zip(*(column.cells for column in chosen), strict=True)
        for row, values in zip(table.rows, cells, strict=True):
            part.add_row(*values, style=row.style, end_section=row.end_section)
        parts.append(part)
    return parts


def _size(*cells: object) -> int:
    texts = (cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain for cell in cells)
    return max(cell_len(text) for text in texts) + BETWEEN
