"""The table after a test fits the terminal's 140 columns and loses nothing."""

import io

import pytest
from rich.console import Console

from eenet.reporting import results_table


def row(name: str, exits: int, bitops: dict[str, float]) -> dict:
    figures = {"accuracy": 0.989, "balanced_accuracy": 0.5123, "macro_f1": 0.4972, "nll": 1.234, "ece": 0.1234}
    costs = {"macs": 27_432_192, "macs_fraction": 0.531, "stages_mean": 11.21}
    return {"name": name, **figures, "brier": 0.123, **costs, **bitops, "exit_fractions": [1 / exits] * exits}


@pytest.mark.parametrize("exits", [4, 12])
@pytest.mark.parametrize("bitops", [{}, {"bitops_fraction": 0.1234}])
def test_every_figure_is_whole_in_140_columns(exits: int, bitops: dict[str, float]) -> None:
    name, text = "max_probability-budget-0.75", io.StringIO()
    heading = {"method": "jei_dnn", "data": "digits", "split": "test", "seed": 0}
    rows = {"exits": [row(f"exit {i}", exits, bitops) for i in range(exits)]}
    table = results_table({**heading, **rows, "operating_points": [row(name, exits, bitops)]})
    Console(file=text, width=140).print(table)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 140
    assert "…" not in text.getvalue()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells[0][:5] == ["exit 0", "98.90", "51.23", "49.72", "1.234"]
    point = cells[exits:]
    assert "".join(line[0] for line in point) == name
    assert " ".join(filter(None, (line[-1] for line in point))) == " ".join([f"{100 / exits:.0f}"] * exits)
