"""`eenet features list|remove|verify|extract`: the feature stores on disk."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from jsonargparse import auto_cli
from rich.table import Table

from eenet.cli.options import add_ray, cluster_of
from eenet.errors import UserError, command
from eenet.parsing.refusals import Parser

if TYPE_CHECKING:
    from eenet.features import FeatureStore


def main(args: list[str]) -> None:
    """Run `eenet features` with some arguments."""
    if args[:1] == ["extract"]:
        return extract(args[1:])
    auto_cli(
        {"list": list_stores, "remove": remove, "verify": verify},
        args=args,
        prog="eenet features",
        parser_class=Parser,
        description="The feature stores on disk; `eenet features extract --help` explains how to fill them.",
    )


def extract(args: list[str]) -> None:
    """Extract what a training of a configuration will read, here or on a Ray cluster."""
    from eenet.late import Late, without
    from eenet.parsing.shipped import imports, with_own

    parser = Parser(prog="eenet features extract", description="Fill the stores that `eenet fit` reads.")
    parser.add_argument("--config", action="config", help="configuration of `eenet fit`; several are laid over another")
    for part in ("model", "data"):
        parser.add_subclass_arguments(Late, part, fail_untyped=False, required=True)
    for name in ("seed_everything", "trainer", "ckpt_path", "point", "per_class"):
        parser.add_argument(f"--{name}", type=Any, default=None, help="as of `eenet fit`")
    add_ray(parser)
    if {"--help", "-h"} & {*args}:
        parser.parse_args(args)  # prints it and ends, before what a configuration needs is imported
    args, allowed = with_own(args)
    with imports(allowed), without():
        options = parser.parse_args(args)
        cluster = cluster_of(vars(options))
        import torch

        torch.manual_seed(options.seed_everything or 0)
        made = parser.instantiate_classes(options)
    from eenet.api.opening import device_of
    from lightning_modules.extracting import extract as fill

    if cluster is None:
        made.model.to(device_of(options.trainer or {}))
    fill(made.model, made.data, cluster)


def list_stores(folder: str = "features") -> None:
    """List the stores with their sizes and how many of their shards are written.

    Args:
        folder: Folder of the stores.
    """
    from eenet.reporting import show

    table = Table("key", "samples of", "number", "early exits", "dtype", "shards", "MB")
    stores = find_stores(folder)
    for store in stores:
        layout, written = store.layout, len(list(store.folder.glob("shards/*.json")))
        cells = [store.folder.name, store.name, f"{store.samples:,}", str(len(layout.shapes)), layout.dtype]
        table.add_row(*cells, f"{written} of {len(store.shards)}", f"{store.num_bytes / 1e6:,.1f}")
    show(table)
    print(f"total: {sum(store.num_bytes for store in stores) / 1e6:,.1f} MB in {folder}")


def remove(key: str, folder: str = "features") -> None:
    """Remove stores.

    Args:
        key: Key of a store or its beginning; `all` for every store.
        folder: Folder of the stores.

    Raises:
        UserError: No store has the key, or it is being written.
    """
    for store in find_stores(folder, key):
        try:
            with FileLock(store.folder / "lock", timeout=0):
                shutil.rmtree(store.folder)
        except Timeout as error:
            raise UserError("key", store.folder.name, "is being extracted; wait for that run or end it") from error
        print(f"removed {store.folder.name} ({store.name}, {store.num_bytes / 1e6:,.1f} MB)")


def verify(key: str = "all", folder: str = "features") -> None:
    """Read whole stores and compare every shard with its checksum.

    Args:
        key: Key of a store or its beginning; `all` for every store.
        folder: Folder of the stores.

    Raises:
        UserError: No store has the key.
        SystemExit: With status 1 if a shard is damaged; the next run that uses the store extracts it again.
    """
    damaged = 0
    for store in find_stores(folder, key):
        states = [store.state(number) for number in range(len(store.shards))]
        for number, (rows, state) in enumerate(zip(store.shards, states, strict=True)):
            if state != "whole":
                print(f"{store.folder.name}: shard {number} (samples {rows.start} to {rows.stop - 1}) is {state}")
        print(f"{store.folder.name} ({store.name}): {states.count('whole')} of {len(states)} shards are whole")
        damaged += states.count("damaged")
    if damaged:
        raise SystemExit(1)


def find_stores(folder: str, key: str = "all") -> "list[FeatureStore]":
    """The stores in a folder whose key begins so, by name; a `UserError` where one that is asked for is not there."""
    from eenet.features import FeatureStore

    stores = [FeatureStore.open(path.parent) for path in sorted(Path(folder).glob("*/manifest.json"))]
    found = [store for store in stores if key == "all" or store.folder.name.startswith(key)]
    if not found and key != "all":
        raise UserError(
            "key", key, f"no store in {folder} has it; see {command('features', 'list', '--folder', folder)}"
        )
    return sorted(found, key=lambda store: store.name)
