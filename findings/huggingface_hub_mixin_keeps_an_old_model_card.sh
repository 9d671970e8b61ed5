#!/bin/sh
# huggingface_hub 2.4.0, torch 2.14.1 (Python 3.11): saving a second model into a folder through the mixin replaces weights
# and configuration and leaves the card of the first, so that a card with results or tags describes weights that are gone.
#
# Output seen:
#     width 2 card first
#     width 3 card first
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
cat > "$folder/save.py" <<'PYTHON'
import json
import tempfile
from pathlib import Path

from huggingface_hub import PyTorchModelHubMixin
from torch import nn


class First(nn.Module, PyTorchModelHubMixin, tags=["first"]):
    def __init__(self, width: int = 2):
        super().__init__()
        self.layer = nn.Linear(width, width)


class Second(nn.Module, PyTorchModelHubMixin, tags=["second"]):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = nn.Linear(width, width)


folder = Path(tempfile.mkdtemp())
for model in (First(), Second()):
    model.save_pretrained(folder)
    card = (folder / "README.md").read_text()
    tags = [tag for tag in ("first", "second") if f"- {tag}" in card]
    print("width", json.loads((folder / "config.json").read_text())["width"], "card", *tags)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/save.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "width 2 card first
width 3 card first" ]
