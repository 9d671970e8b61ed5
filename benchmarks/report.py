"""What every benchmark does with what it found."""

import json
from pathlib import Path
from typing import Any

import torch

from eenet.reporting import machine, write_json


def finish(found: dict[str, Any], output: Path | None) -> None:
    """Print the figures as JSON with the machine that they were measured on, and write them where a file is given."""
    found = {"machine": machine(), "threads": torch.get_num_threads(), **found}
    print(json.dumps(found, indent=2))
    if output is not None:
        write_json(output, found)
