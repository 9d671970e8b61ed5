"""Wrong checkpoints, and configurations of a stranger whose callable only writes a marker."""

import copy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from .harness import QUIET, Base, Ended, run

Change = Callable[[dict[str, Any]], Any]


def without(*keys: str) -> Change:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        del values[keys[-1]]

    return change


def having(*keys: str, value: Any) -> Change:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


def _renamed(saved: dict[str, Any]) -> None:
    name = next(iter(saved["state_dict"]))
    saved["state_dict"]["other"] = saved["state_dict"].pop(name)


def _reshaped(saved: dict[str, Any]) -> None:
    name = next(name for name, value in saved["state_dict"].items() if value.ndim > 1)
    saved["state_dict"][name] = saved["state_dict"][name].flatten()


SAVED: dict[str, Change] = {
    "no identity": without("eenet"),
    "no method": without("eenet", "method"),
    "no backbone": without("eenet", "backbone"),
    "no exits": without("eenet", "exits"),
    "identity of text": having("eenet", value="eenet"),
    "another method": having("eenet", "method", value="Other"),
    "another backbone": having("eenet", "backbone", "name", value="other"),
    "a backbone of text": having("eenet", "backbone", value="vit"),
    "no weights": having("state_dict", value={}),
    "weights of text": having("state_dict", value={"a": "b"}),
    "another name": _renamed,
    "another shape": _reshaped,
    "callbacks in a list": having("callbacks", value=[1]),
    "a state dict alone": lambda saved: saved["state_dict"],
    "a list": lambda saved: [1, 2],
}
"""Changes of what a checkpoint holds."""

CONTINUED: dict[str, Change] = {
    "no loops": without("loops"),
    "no progress": having("loops", "fit_loop", value={}),
    "no optimizers": without("optimizer_states"),
    "optimizers of another kind": having("optimizer_states", value=[{"a": 1}]),
    "no schedules": without("lr_schedulers"),
    "another random state": having("callbacks", "RandomState", value={"python": 1}),
}
"""Changes that matter to a training that continues."""

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "text": lambda _: b"this is no checkpoint\n" * 50,
    "a flipped byte": lambda content: content[: len(content) // 2] + b"\xff" + content[len(content) // 2 + 1 :],
    "no end": lambda content: content[:-30],
}


def wrong_checkpoints(base: Base, place: Path, every: int = 1) -> Iterator[tuple[str, Ended]]:
    """How commands end on wrong checkpoints.

    Args:
        base: A run.
        place: Where it is copied to.
        every: Take one of so many.
    """
    fit = ["fit", "--config", "{}/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs=3", *QUIET]
    calibrate = ["calibrate", "{}", "--budget", "0.5"]
    kinds = [(name, change, calibrate) for name, change in {**BYTES, **SAVED}.items()]
    kinds += [(name, change, fit) for name, change in CONTINUED.items()]
    for name, change, args in kinds[::every]:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base.folder / "runs/exits", place)
        file = place / "checkpoints/last.ckpt"
        if name in BYTES:
            file.write_bytes(change(file.read_bytes()))  # type: ignore[arg-type]
        else:
            saved = torch.load(file, weights_only=True)
            changed = change(saved)  # type: ignore[arg-type]
            torch.save(saved if changed is None else changed, file)
            file.with_name("last.ckpt.sha256").unlink(missing_ok=True)
        yield name, run([word.format(place) for word in args])


STRANGER = """
from pathlib import Path

import torch

def make(*args, **kwargs):
    Path({marker!r}).write_text("ran")
    return torch.nn.Identity()

class Part(torch.nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        make()

class Optimizer(torch.optim.SGD):
    def __init__(self, *args, **kwargs):
        make()
        super().__init__(*args, **kwargs)

Path({marker!r}).write_text("imported")
"""
"""A package whose import and whose callables leave a marker."""

NETWORK = ("model", "init_args", "network")
PLACES = {
    "model": ("model",),
    "data": ("data",),
    "network": NETWORK,
    "backbone": (*NETWORK, "init_args", "backbone"),
    "gate": (*NETWORK, "init_args", "gate"),
    "head": (*NETWORK, "init_args", "inference_module"),
    "optimizer": ("model", "init_args", "optimizer"),
    "logger": ("trainer", "logger"),
    "profiler": ("trainer", "profiler"),
    "strategy": ("trainer", "strategy"),
    "plugins": ("trainer", "plugins"),
}


def strangers(file: Path) -> dict[str, Change]:
    """Ways in which a saved configuration may name a callable of the package `stranger`.

    Args:
        file: A YAML file that names one.
    """
    kinds = {f"{name}, class_path": having(*at, value={"class_path": "stranger.make"}) for name, at in PLACES.items()}
    kinds |= {f"{name}, text": having(*at, value="stranger.make") for name, at in PLACES.items() if name != "data"}
    kinds |= {f"{name}, file": having(*PLACES[name], value=str(file)) for name in ("model", "gate", "optimizer")}
    kinds["a class"] = having(*PLACES["gate"], value={"class_path": "stranger.Part"})
    kinds["an optimizer"] = having(*PLACES["optimizer"], value={"class_path": "stranger.Optimizer"})
    kinds["among callbacks"] = having("trainer", "callbacks", value=[{"class_path": "stranger.make"}])
    arguments = (*PLACES["backbone"], "init_args", "overrides")
    kinds["in a dictionary"] = having(*arguments, value={"norm_layer": {"class_path": "stranger.make"}})
    return kinds


def strange_configurations(base: Base, place: Path, every: int = 1) -> Iterator[tuple[str, Ended, bool]]:
    """How `calibrate` ends on a stranger's run, and whether anything of the stranger's ran.

    Loggers and the like are not built by it, so that it may as well succeed.
    """
    package, marker = place.with_name("package"), place.with_name("marker")
    package.mkdir(exist_ok=True)
    (package / "stranger.py").write_text(STRANGER.format(marker=str(marker)))
    (package / "part.yaml").write_text("class_path: stranger.make\n")
    sys.path.insert(0, str(package))
    try:
        for name, change in list(strangers(package / "part.yaml").items())[::every]:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(base.folder / "runs/exits", place)
            values = copy.deepcopy(yaml.safe_load((place / "config.yaml").read_text()))
            change(values)
            (place / "config.yaml").write_text(yaml.safe_dump(values))
            marker.unlink(missing_ok=True)
            ended = run(["calibrate", str(place), "--budget", "0.5"])
            yield name, ended, marker.exists()
    finally:
        sys.path.remove(str(package))
