"""The published table of families is what this library gives: a third of it by default, all of it when asked."""

from pathlib import Path

import pytest

from benchmarks.families import judge, small
from eenet.backbones.gpt import Gpt
from eenet.decoding import Executor, full_plan
from eenet.errors import UserError

TABLE = Path(__file__).parents[3] / "docs" / "studies" / "decoder_families.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| family", "| ---"))
]
ACCEPTED = [row[0] for row in ROWS if row[2] == "yes"]
REFUSED = [row[0] for row in ROWS if row[2] != "yes" and row[1]]


def opened(name: str) -> Executor:
    gpt = Gpt.of(small(name))
    return Executor(gpt, full_plan(gpt.num_stages))


@pytest.mark.parametrize("name", ACCEPTED[::3])
def test_a_family_of_the_table_is_accepted(name: str) -> None:
    assert len(opened(name).layers) == 4


@pytest.mark.parametrize("name", REFUSED[::3])
def test_a_family_that_the_table_refuses_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as error:
        opened(name)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_is_true(row: list[str]) -> None:
    found = judge(row[0])
    marks = ["" if value is None else "yes" if value else "**no**" for value in found[2:6]]
    assert [found.name, found.attention, *marks] == row[:6]
