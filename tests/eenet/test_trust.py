"""What a run's own configuration may name without being asked."""

import re
from pathlib import Path

import torch

from eenet.runs.trust import DEFAULTS

ROUTINES = Path(__file__).parents[2] / "lightning_modules"


def test_what_routines_take_by_themselves_is_trusted_under_both_of_its_names() -> None:
    taken = {
        name
        for path in ROUTINES.glob("*.py")
        for name in re.findall(r"lambda params: torch\.optim\.(\w+)\(", path.read_text())
    }
    assert {"SGD", "AdamW"} <= taken
    for name in taken:
        defined = getattr(torch.optim, name)
        assert {f"torch.optim.{name}", f"{defined.__module__}.{name}"} <= set(DEFAULTS)
