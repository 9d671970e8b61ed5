"""The line that long work shows."""

from io import StringIO

from rich.console import Console

from eenet.progress import tracked


def shown(terminal: bool) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    assert list(tracked(iter("abc"), "compiling the steps", 3, console)) == ["a", "b", "c"]
    return out.getvalue()


def test_a_terminal_sees_what_is_done_and_how_long_it_takes() -> None:
    found = shown(terminal=True)
    assert "compiling the steps" in found
    assert "0%" in found
    assert "-:--:--" in found or "0:00:0" in found


def test_a_file_sees_nothing() -> None:
    assert shown(terminal=False) == ""
