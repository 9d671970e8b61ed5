#!/bin/sh
# jsonargparse 4.53.0 (Python 3.11): an option whose name is that of a method of its Namespace, as --keys or --values, is kept
# under another name, with a zero-width space (U+200B) before it. `vars()` shows that name: it prints like the right one,
# is not found by it, and handing all options on to a function ends in a TypeError that names the argument the function has.
# `as_dict()` has the right name.
#
# Output seen:
#     vars: '\u200bkeys' 'plan' as_dict: 'keys' 'plan'
#     TypeError with U+200B
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jsonargparse==4.53.0 PyYAML==6.0.3
cat > "$folder/parse.py" <<'PYTHON'
from jsonargparse import ArgumentParser


def run(keys: str, plan: str) -> None:
    pass


parser = ArgumentParser()
for name in ("keys", "plan"):
    parser.add_argument(f"--{name}", type=str, default="full")
options = parser.parse_args(["--keys", "absent"])
print("vars:", *map(ascii, vars(options)), "as_dict:", *map(ascii, options.as_dict()))
run(**options.as_dict())
try:
    run(**vars(options))
except TypeError as error:
    print("TypeError", "with U+200B" if "\u200bkeys" in str(error) else error)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/parse.py")
echo "$seen"
[ "$seen" = "vars: '\u200bkeys' 'plan' as_dict: 'keys' 'plan'
TypeError with U+200B" ]
