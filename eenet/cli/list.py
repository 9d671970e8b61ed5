"""`eenet list`: the shipped configurations, one line each."""

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from eenet.parsing.shipped import CONFIGS, names

WIDTH = 180
"""Columns of the table where there is no terminal; with fewer, classes are left out."""


def main(args: list[str]) -> None:
    """Run `eenet list` with some arguments."""
    from rich.console import Console
    from rich.table import Column, Table

    from eenet.parsing.refusals import Parser

    Parser(prog="eenet list", description="Print the shipped configurations.").parse_args(args)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    classes = ["routine", "backbone", "data"] if console.width >= WIDTH else []
    table = Table(*(Column(heading, no_wrap=True) for heading in ("configuration", *classes)), "what it is")
    for _, group in groupby(names(), key=lambda name: name.partition("/")[0]):
        for name in group:
            *parts, purpose = describe(CONFIGS / f"{name}.yaml")
            table.add_row(name, *parts[: len(classes)], purpose)
        table.add_section()
    console.print(table)
    print(
        f"from {CONFIGS}\n"
        "train one: eenet fit --config digits/vit_jei_dnn\n"
        "overlays are added: eenet fit --config digits/vit_jei_dnn --config overlays/debug\n"
        "nlg is for decoders: eenet layers smollm2 --data nlg/bbc_headlines --out runs/layers"
    )


def describe(path: Path) -> tuple[str, str, str, str]:
    """Routine, backbone and data of a configuration by their class names, and what its first line says it is.

    Example:
        >>> describe(CONFIGS / "digits" / "vit_jei_dnn.yaml")
        ('JointExits', 'ViT', 'Digits', 'JEI-DNN on the digits')
    """
    import yaml

    text = path.read_text(encoding="utf-8")
    values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    purpose = re.split(r"[:;](?:\s|$)|\.(?:\s+[A-Z`]|$)", text.partition("\n")[0].lstrip("# "))[0]
    data = values if "class_path" in values else values.get("data")
    model = values.get("model")
    return class_name(model), class_name(find_backbone(model)), class_name(data), purpose


def find_backbone(model: dict[str, Any] | None) -> dict[str, Any] | None:
    """The backbone of a routine's configuration, which may be inside its network."""
    values = model["init_args"] if model else {}
    return values.get("backbone") or values.get("network", {}).get("init_args", {}).get("backbone")


def class_name(part: dict[str, Any] | None) -> str:
    """The class of a part of a configuration, without its module; empty where there is no part."""
    return part["class_path"].rpartition(".")[2] if part else ""
