#!/bin/sh
# jsonargparse 4.53.0 (Python 3.11): `null` for a parameter `share: float = 0.1` is refused where the parameter is an
# argument of its own or of a class that is given as a group. Where the class is chosen by `class_path`, `null` passes as
# `None`, for a list, too, while any other text is refused. So a configuration that says nothing after `share:` reaches
# the constructor, which fails where it computes with `None`, or runs.
#
# Output seen:
#     argument refused
#     class refused
#     subclass None
#     subclass, list None
#     subclass, text refused
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'jsonargparse[signatures]==4.53.0' PyYAML==6.0.4 docstring-parser==0.18.0 typeshed-client==2.15.0
cat > "$folder/parse.py" <<'PYTHON'
from collections.abc import Callable

from jsonargparse import ArgumentParser


class Model:
    def __init__(self, share: float = 0.1, names: list[str] = ["a"]) -> None:
        self.share, self.names = share, names


def parse(name: str, add: Callable, key: str, *args: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    add(parser)
    try:
        print(name, parser.parse_args(list(args))[key])
    except Exception:
        print(name, "refused")


def chosen(parser: ArgumentParser) -> None:
    parser.add_subclass_arguments(Model, "model")


model = "--model=__main__.Model"
parse("argument", lambda parser: parser.add_argument("--share", type=float, default=0.1), "share", "--share=null")
parse("class", lambda parser: parser.add_class_arguments(Model, "model"), "model.share", "--model.share=null")
parse("subclass", chosen, "model.init_args.share", model, "--model.share=null")
parse("subclass, list", chosen, "model.init_args.names", model, "--model.names=null")
parse("subclass, text", chosen, "model.init_args.share", model, "--model.share=none at all")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/parse.py")
echo "$seen"
[ "$seen" = "argument refused
class refused
subclass None
subclass, list None
subclass, text refused" ]
