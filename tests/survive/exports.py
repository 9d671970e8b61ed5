"""Exported folders that were damaged, or changed by somebody who sets the digests right."""

import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eenet.errors import UserError
from eenet.files import sha256
from eenet.runtime import load
from eenet.runtime.manifest import MANIFEST, manifest_digest

from .harness import CHANGES, WRITES, Base, inside, reference, run

ACTS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", *CHANGES)
"""What an export may not do, as Python's events have it; opening files to write is seen, too."""

OPERATIONS = [
    *("os.system", "builtins.eval", "builtins.open", "torch.load", "torch.hub.load", "aten.from_file.default"),
    *("python.getattr", "aten.save.default", "torch.ops.load_library", "subprocess.Popen", "aten.full.default"),
]
VALUES: list[Any] = [
    *(0, -1, 1, 2, 10**9, 2**62, -(2**63), 0.0, 1e308, True, None, "x", "touch marker", [], [0], {}, [[[]]]),
    *({"value": 0}, {"value": 10**6}, {"value": -1}, {"dtype": "float64"}, {"dtype": "os"}, {"device": "cuda"}),
]
LONGEST = 5.0
"""Seconds of the processor that a small folder may take to be refused or to run."""


class Tried(NamedTuple):
    """What became of a folder.

    Attributes:
        name: What was done to it.
        acted: What it did that no export may do.
        unclear: How else than by one line of eenet's it ended, or that it took too long.
    """

    name: str
    acted: list[str]
    unclear: str


class _Watch:
    """Notes forbidden acts while it is on; hooks last as long as their process."""

    def __init__(self) -> None:
        self.on, self.acts = False, list[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if writes or event in ACTS:
            self.acts.append(f"{event} {str(args[:1])[:80]}")


@cache
def _watch() -> _Watch:
    return _Watch()


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places_in(value[key])


def change_json(path: Path, draw: random.Random) -> str:
    """Change one to three places of a JSON file."""
    values = json.loads(path.read_text())
    done = []
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(list(places_in(values)))
        kind = draw.choice(["value", "value", "operation", "drop", "twice"])
        if kind == "drop":
            del container[key]
        elif kind == "twice" and isinstance(container, list):
            container.insert(key, container[key])
        else:
            container[key] = draw.choice(OPERATIONS if kind == "operation" else VALUES)
        done.append(f"{kind} at {key}")
        if not list(places_in(values)):
            break
    if path.name == MANIFEST:
        values["digest"] = manifest_digest(values)
    path.write_text(json.dumps(values))
    return ", ".join(done)


def change_bytes(path: Path, draw: random.Random) -> str:
    """Flip, cut or insert bytes."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    path.write_bytes(bytes(content))
    return f"{len(content)} bytes"


def sign(folder: Path, name: str) -> None:
    """Set the digests right."""
    values = json.loads((folder / MANIFEST).read_text())
    if isinstance(values, dict) and isinstance(values.get("files"), dict):
        values["files"][name] = sha256(folder / name)
        values["digest"] = manifest_digest(values)
        (folder / MANIFEST).write_text(json.dumps(values))


def damaged_exports(
    base: Base, place: Path, count: int, seed: int = 0, formats: Sequence[str] = ("torch", "torch", "onnx")
) -> list[Tried]:
    """Load damaged folders and run what loads.

    Args:
        base: A run.
        place: Where folders are written.
        count: Of folders.
        seed: Of the damage.
        formats: One of which each folder has.
    """
    sources = {format: _export(base, format) for format in set(formats)}
    with tempfile.TemporaryFile() as told:
        child = os.fork()  # for the hook slows down all that its process does
        if child == 0:
            try:
                pickle.dump([_damaged(sources, place / "damaged", formats, seed, n) for n in range(count)], told)
                told.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        told.seek(0)
        return pickle.load(told)


def _damaged(sources: dict[str, Path], folder: Path, formats: Sequence[str], seed: int, number: int) -> Tried:
    """Damage one export, load and run it."""
    draw = random.Random(f"{seed} {number}")
    format = draw.choice(formats)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sources[format], folder)
    name = draw.choice(sorted(path.name for path in folder.iterdir()))
    change = change_json if name.endswith(".json") and draw.random() < 0.8 else change_bytes
    done = f"{number}: {format}, {name}, {change(folder / name, draw)}"
    if name != MANIFEST and draw.random() < 0.9:
        sign(folder, name)
    return _try(folder, done)


def _export(base: Base, format: str) -> Path:
    """An export of the base; the one in torch's format is that of the commands that are killed."""
    if format == "torch":
        return reference(base, "export").left / "export"
    folder = base.folder.with_name(format)
    with inside(base.folder):
        ended = run(["export", "runs/exits", "--format", format, "--out", str(folder), "--point", "budget-0.5"])
    assert ended.code == 0, ended.text
    return folder


def _try(folder: Path, done: str) -> Tried:
    watch = _watch()
    watch.acts, watch.on, unclear, start = [], True, "", time.process_time()
    try:
        model = load(folder)
        for rows in (1, 3):
            model(torch.zeros(rows, 1, 8, 8))
    except UserError as error:
        unclear = "more than one line" if "\n" in str(error) else ""
    except BaseException as error:
        unclear = f"{type(error).__name__}: {error}"
    finally:
        watch.on = False
    if (taken := time.process_time() - start) > LONGEST:
        unclear = f"took {taken:.1f} s"
    return Tried(done, list(watch.acts), unclear)
