"""The table after a test fits the terminal and loses nothing."""

import io

import pytest
from rich.console import Console

from eenet.reporting import conformal_table, results_table, show


def row(name: str, exits: int, bitops: dict[str, float]) -> dict:
    figures = {"accuracy": 0.989, "balanced_accuracy": 0.5123, "macro_f1": 0.4972, "nll": 1.234, "ece": 0.1234}
    costs = {"macs": 27_432_192, "macs_fraction": 0.531, "stages_mean": 11.21}
    return {"name": name, **figures, "brier": 0.123, **costs, **bitops, "exit_fractions": [1 / exits] * exits}


@pytest.mark.parametrize("exits", [4, 12])
@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("bitops", [{}, {"bitops_fraction": 0.1234}])
def test_every_figure_is_whole(exits: int, width: int, bitops: dict[str, float]) -> None:
    name, text = "max_probability-budget-0.75", io.StringIO()
    heading = {"method": "jei_dnn", "data": "digits", "split": "test", "seed": 0}
    rows = {"exits": [row(f"exit {i}", exits, bitops) for i in range(exits)]}
    table = results_table({**heading, **rows, "operating_points": [row(name, exits, bitops)]})
    show(table, console=Console(file=text, width=width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text.getvalue()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    point = [figure for line in cells if line[0] == name for figure in line[1:]]
    shares = " ".join([f"{100 / exits:.0f}"] * exits)
    costs = ["12.34"] if bitops else []
    stages = [] if bitops else ["11.21"]
    expected = ["98.90", "53.1", *costs, "1.234", "12.34", shares, "27.4 M", *stages, "51.23", "49.72", "0.123", ""]
    assert point == expected


def test_columns_are_those_of_the_exits_where_no_point_is_chosen() -> None:
    heading = {"method": "quee", "data": "digits", "split": "test", "seed": 0}
    unchosen = {"name": "budget-5", "chosen": False, "why": "nothing was validated"}
    exits = [row("8 bits exit 0", 1, {"bitops_fraction": 0.1234})]
    table = results_table({**heading, "exits": exits, "operating_points": [unchosen]})
    cells = {str(column.header): next(iter(column.cells)) for column in table.columns}
    assert (cells["BitOPs %"], cells["NLL"], cells["MACs"]) == ("12.34", "1.234", "27.4 M")
    assert len(table.columns) == len(cells)


@pytest.mark.parametrize("width", [50, 80])
def test_every_conformal_figure_stands_beside_the_kind_of_its_sets(width: int) -> None:
    one = {"alpha": 0.025, "fallbacks": [], "coverage": 0.9, "set_size": 1.5}
    modes = [{"mode": mode, **one} for mode in ("common", "all")]
    points = [{"name": name, "conformal": modes} for name in ("max_probability-budget-0.5", "max_probability-risk-0.1")]
    text = io.StringIO()
    show(conformal_table({"operating_points": points}), console=Console(file=text, width=width))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().splitlines() if "│" in line]
    figures = [row for row in rows if any(row[1:])]
    assert {row[0] for row in figures} == {"common", "all"}
    assert sorted(figure for row in figures for figure in row[1:]) == sorted(["97.5", "90.0", "1.50"] * 4)
    assert max(map(len, text.getvalue().splitlines())) <= width
