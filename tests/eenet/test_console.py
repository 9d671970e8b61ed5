"""Tables on narrow terminals."""

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eenet.reporting.console import in_parts, show, tell


def figures() -> Table:
    table = Table(title="figures", caption="below")
    for heading in ("point", "accuracy %", "MACs %", "NLL", "leaving at each exit %"):
        table.add_column(heading, justify="right" if heading != "point" else "left")
    table.add_row("exit 0", "92.22", "33.4", "0.343", "")
    table.add_section()
    table.add_row(Text("budget-macs-1234567"), "94.44", "42.8", "0.249", "78 16 6", style="bold")
    return table


@pytest.mark.parametrize("width", [48, 60, 80, 140])
def test_no_cell_is_cut_and_no_line_is_too_wide(width: int) -> None:
    out = StringIO()
    show(figures(), console=Console(file=out, width=width))
    text = out.getvalue()
    assert "…" not in text
    for cell in ("exit 0", "92.22", "33.4", "0.343", "94.44", "42.8", "0.249", "78 16 6", "leaving at each exit %"):
        assert text.count(cell) == (len(in_parts(figures(), width)) if cell == "exit 0" else 1), cell
    assert text.count("budget-macs-1234567") == len(in_parts(figures(), width))
    assert max(map(len, text.splitlines())) <= width


def test_a_table_that_fits_is_one() -> None:
    (part,) = in_parts(figures(), 140)
    assert (part.title, part.caption) == ("figures", "below")
    assert part.rows[0].end_section
    first, *_, last = in_parts(figures(), 50)
    assert (first.title, first.caption, last.title, last.caption) == ("figures", None, None, "below")


def test_a_path_that_is_longer_than_the_console_stays_in_one_piece() -> None:
    out, path = StringIO(), "runs/tradeoff=[b]0.1[/b], seed=0/" + "folder/" * 9
    tell(f"results: {path}", "figure: a.png", console=Console(file=out, width=40))
    assert out.getvalue() == f"results: {path}\nfigure: a.png\n"
