#!/bin/sh
# jsonargparse 4.53.0 (Python 3.11): a parameter is a callable that returns an instance of a class, and its default is
# a lambda that calls one subclass with some arguments. A configuration that names another subclass, with one argument of
# its own, silently gets the lambda's other arguments as well, where the new class has parameters of these names.
#
#     def train(optimizer: Callable[[list], Base] = lambda params: Sgd(params, lr=0.01, decay=0.5)): ...
#     --optimizer.class_path Adam --optimizer.init_args.lr 0.02
#
# Expected: Adam with its own default, decay 0.0. Seen: decay 0.5. Written as one mapping of `class_path` and `init_args`
# it is the same. In LightningCLI this is how an optimizer that is exchanged keeps the weight decay of the one before.
#
# Output seen:
#     options: Adam lr=0.02 decay=0.5
#     mapping: Adam lr=0.02 decay=0.5
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'jsonargparse[signatures]==4.53.0'
cat > "$folder/choose.py" <<'PYTHON'
from typing import Callable

from jsonargparse import ArgumentParser


class Base:
    def __init__(self, params: list, lr: float, decay: float = 0.0):
        self.lr, self.decay = lr, decay


class Sgd(Base):
    pass


class Adam(Base):
    def __init__(self, params: list, lr: float = 0.001, decay: float = 0.0):
        super().__init__(params, lr, decay)


class Model:
    def __init__(self, optimizer: Callable[[list], Base] = lambda params: Sgd(params, lr=0.01, decay=0.5)):
        self.made = optimizer([])


def made(*args: str) -> str:
    parser = ArgumentParser()
    parser.add_class_arguments(Model, "model")
    found = parser.instantiate(parser.parse_args(list(args))).model.made
    return f"{type(found).__name__} lr={found.lr} decay={found.decay}"


print("options:", made("--model.optimizer.class_path", "__main__.Adam", "--model.optimizer.init_args.lr", "0.02"))
print("mapping:", made('--model.optimizer={"class_path": "__main__.Adam", "init_args": {"lr": 0.02}}'))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/choose.py")
echo "$seen"
[ "$seen" = "options: Adam lr=0.02 decay=0.5
mapping: Adam lr=0.02 decay=0.5" ]
