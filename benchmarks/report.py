"""What every benchmark does with what it found."""

import json
from pathlib import Path
from typing import Any

import torch

from eenet.reporting import write_json


def finish(found: dict[str, Any], output: Path | None) -> None:
    """Print the figures as JSON with the versions they depend on, and write them where a file is given."""
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), **found}
    print(json.dumps(found, indent=2))
    if output is not None:
        write_json(output, found)
