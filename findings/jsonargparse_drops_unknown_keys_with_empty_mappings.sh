#!/bin/sh
# jsonargparse 4.53.0 (Python 3.11): a configuration has a key that no parameter has. With a number as its value the
# configuration is refused, as it should be; with an empty mapping the key is dropped in silence, at the top and inside
# the arguments of a class. So a misspelt `optons: {}`, or a section whose lines were all commented out, is no error.
#
# Output seen:
#     model.wdth: 4 refused
#     model.wdth: {} accepted
#     optons: {} accepted
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'jsonargparse[signatures]==4.53.0'
cat > "$folder/parse.py" <<'PYTHON'
import json

from jsonargparse import ArgumentParser


class Model:
    def __init__(self, width: int = 3):
        self.width = width


def parse(name: str, content: dict) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Model, "model")
    try:
        parser.parse_args(["--config", json.dumps(content)])
    except Exception:
        print(name, "refused")
    else:
        print(name, "accepted")


parse("model.wdth: 4", {"model": {"wdth": 4}})
parse("model.wdth: {}", {"model": {"wdth": {}}})
parse("optons: {}", {"optons": {}})
PYTHON
seen=$("$folder/venv/bin/python" "$folder/parse.py")
echo "$seen"
[ "$seen" = "model.wdth: 4 refused
model.wdth: {} accepted
optons: {} accepted" ]
