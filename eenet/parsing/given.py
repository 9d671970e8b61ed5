"""Where a key was given: in an argument, or in a line of a configuration."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from os.path import isfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from eenet.reading import read_text


class Given(NamedTuple):
    """What was given for a key.

    Attributes:
        value: The value.
        place: File and line, where it stands in a file.
    """

    value: Any
    place: str = ""


def find_given(args: Sequence[str], key: str) -> Given | None:
    """Find what gave a key last; in arguments `init_args` may be left out.

    Args:
        args: Arguments of a command, among them its configurations.
        key: The key, as `data.init_args.seed`; the class of a part that is given as keys stands for the part.

    Example:
        >>> find_given(["--data.seed", "3", "--trainer.max_steps=5"], "data.init_args.seed")
        Given(value='3', place='')
    """
    wanted = plain(key)
    found = None
    for number, text in enumerate(args):
        name, equals, value = text.partition("=")
        if not equals:
            value = next((after for after in args[number + 1 : number + 2] if not after.startswith("--")), "")
        if name in ("--config", "-c") and key != "config" and isfile(value):
            found = in_file(Path(value), wanted.split(".")) or found
        elif name.startswith("-") and plain(name.lstrip("-")) == wanted:
            found = Given(value)
    return found


def leaves(args: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Keys of a command's configurations and arguments with their single values; places in lists are left out.

    Example:
        >>> list(leaves(["--model.optimizer.lr=-1", "--model.exits", "[0, 2]"]))
        [('model.optimizer.lr', -1), ('model.exits', 0), ('model.exits', 2)]
    """
    for number, text in enumerate(args):
        name, equals, value = text.partition("=")
        if not name.startswith("--"):
            continue
        value = value if equals else next(iter(args[number + 1 : number + 2]), "")
        with suppress(yaml.YAMLError):
            if name == "--config":  # a file, or its text
                yield from values_below("", yaml.safe_load(read_text(Path(value)) if isfile(value) else value))
            else:
                yield from values_below(name.lstrip("-"), yaml.safe_load(value))


def values_below(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Single values in mappings and lists, with their keys; an empty mapping is one."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from values_below(f"{key}.{name}".lstrip("."), below)
    elif isinstance(value, list):
        for item in value:
            yield from values_below(key, item)
    else:
        yield key, value


def plain(key: str) -> str:
    """A key as options and configurations may both write it."""
    return key.replace(".init_args.", ".").replace("-", "_")


def in_file(path: Path, parts: list[str]) -> Given | None:
    """Find a key in a YAML file."""
    node = find_node(yaml.compose(read_text(path), yaml.SafeLoader), parts)
    if node is None:
        return None
    return Given(yaml.safe_load(yaml.serialize(node)), f" ({path}, line {node.start_mark.line + 1})")


def find_node(node: Any, parts: list[str]) -> Any:
    """The YAML node of a key below another; `init_args` and places in lists are passed through."""
    if isinstance(node, yaml.SequenceNode) and parts:
        return next(filter(None, (find_node(item, parts) for item in node.value)), None)
    if not isinstance(node, yaml.MappingNode):
        return node if not parts else None
    below = {plain(key.value): value for key, value in node.value}
    if not parts:
        return below.get("class_path", node)
    return find_node(below[parts[0]], parts[1:]) if parts[0] in below else find_node(below.get("init_args"), parts)
