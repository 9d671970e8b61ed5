"""The table printed after `eenet test`."""

from typing import Any

from rich.console import Console
from rich.table import Table

from eenet.reporting.results import Results


def make_console() -> Console:
    """A console as wide as its terminal, or wide enough for the tables where there is none."""
    return Console(width=None if Console().is_terminal else 140)


def results_table(results: Results) -> Table:
    """Accuracy, calibration and cost of every static exit and operating point."""
    table = Table(title=f"{results['method']} on {results['data']}, {results['split']} split, seed {results['seed']}")
    table.add_column("")
    for heading in ("accuracy %", "NLL", "ECE %", "Brier", "MACs", "MACs %", "stages", "leaving at each exit %"):
        table.add_column(heading, justify="right")
    for row in results["exits"]:
        table.add_row(*_cells(row, ""))
    table.add_section()
    for row in results["operating_points"]:
        shares = " ".join(f"{100 * share:.0f}" for share in row["exit_fractions"])
        table.add_row(*_cells(row, shares), style="bold")
    return table


def _cells(row: dict[str, Any], shares: str) -> list[str]:
    return [
        row["name"],
        f"{100 * row['accuracy']:.2f}",
        f"{row['nll']:.3f}",
        f"{100 * row['ece']:.2f}",
        f"{row['brier']:.3f}",
        si(row["macs"]),
        f"{100 * row['macs_fraction']:.1f}",
        f"{row['stages_mean']:.2f}",
        shares,
    ]


def si(value: float) -> str:
    """A count with three digits and the prefix of its thousands.

    Example:
        >>> si(27432192)
        '27.4 M'
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
