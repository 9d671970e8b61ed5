"""Wrong checkpoints, and configurations of a stranger whose callable only writes a marker."""

import copy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import save

from .harness import BACKBONE, QUIET, Base, Ended, run

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
    name = next(name for name in saved["state_dict"] if "backbone" in name)
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


def _lightning(saved: dict[str, Any]) -> dict[str, Any]:
    return {"pytorch-lightning_version": "2.6.6", "epoch": 1, "state_dict": {"layer.weight": torch.ones(3, 3)}}


def _diverged(state: dict[str, Any]) -> None:
    name = next(name for name, value in state.items() if value.ndim > 1)
    state[name] = torch.full_like(state[name], torch.nan)


def _blocks(state: dict[str, Any], change: Callable[[str], str | None]) -> dict[str, Any]:
    named = {name: change(name) for name in state}
    return {new: state[name] for name, new in named.items() if new is not None}


STATES: dict[str, Change] = {
    "another model's": lambda state: torch.nn.LSTM(3, 3).state_dict(),
    "of a Lightning module": _lightning,
    "of a module, pickled": lambda state: torch.nn.Linear(1, 1),
    "a list": lambda state: [1, 2],
    "numbers": lambda state: {"a": 1, "b": "c"},
    "not finite": _diverged,
    "a block less": lambda state: _blocks(state, lambda name: None if "blocks.1." in name else name),
    "a block more": lambda state: state | _blocks(state, lambda name: name.replace("blocks.1.", "blocks.7.")),
    "other names": lambda state: _blocks(state, lambda name: f"{len(name)}.{name[::-1]}"),
    "another width": lambda state: {name: value.repeat_interleave(2, -1) for name, value in state.items()},
}
"""Changes of the state dict of a model of another library."""

TAKEN = ("no identity", "no backbone", "another backbone", "a backbone of text", "no weights", "weights of text")
OF_RUNS: dict[str, Change] = {
    **{name: SAVED[name] for name in (*TAKEN, "another name", "another shape", "a state dict alone", "a list")},
    "of a Lightning module": _lightning,
    "of a module, pickled": lambda saved: torch.nn.Linear(1, 1),
    "not finite": lambda saved: _diverged(saved["state_dict"]),
    "another width": having("eenet", "backbone", "embed_dim", value=32),
    "other classes": having("eenet", "backbone", "num_classes", value=3),
}
"""Changes of a run's checkpoint that matter to who takes its backbone."""


def wrong_backbones(base: Base, place: Path, every: int = 1) -> Iterator[tuple[str, Ended]]:
    """How a training ends whose backbone comes from a wrong file; of all, the first two are right.

    Args:
        base: A run.
        place: An empty folder.
        every: Take one of so many wrong ones.
    """
    arguments = BACKBONE["init_args"]
    shape = {"img_size": arguments["image_size"], "in_chans": arguments["in_channels"], **arguments["overrides"]}
    state = timm.create_model(arguments["name"], num_classes=arguments["num_classes"], **shape).state_dict()
    saved = torch.load(base.folder / "runs/exits/checkpoints/last.ckpt", weights_only=True)
    network = "model.init_args.network.init_args.backbone.init_args.pretrained"
    files: list[tuple[str, str, Path]] = []
    for key, whole, changes in ((network, state, STATES), ("model.init_args.backbone_checkpoint", saved, OF_RUNS)):
        kind = key.rpartition(".")[2]
        folder = place / kind
        (folder / "nothing").mkdir(parents=True)
        torch.save(whole, folder / "whole.pt")
        files.insert(0, (f"{kind}, whole", key, folder / "whole.pt"))
        files += [(f"{kind}, a folder", key, folder / "nothing"), (f"{kind}, none", key, folder / "nowhere.pt")]
        for name, change in changes.items():
            values = copy.deepcopy(whole)
            changed = change(values)
            torch.save(values if changed is None else changed, folder / f"{name}.pt")
            files.append((f"{kind}, {name}", key, folder / f"{name}.pt"))
        content = (folder / "whole.pt").read_bytes()
        tensors = save({"weight": torch.ones(3)}) if kind == "pretrained" else b""
        for name, damage in BYTES.items():
            if name == "a flipped byte":  # what nothing beside these files could tell
                continue
            (folder / f"{name}.pt").write_bytes(damage(content))
            (folder / f"{name}.safetensors").write_bytes(damage(tensors))
            files.append((f"{kind}, {name}", key, folder / f"{name}.pt"))
            files += [(f"{kind}, safetensors, {name}", key, folder / f"{name}.safetensors")] if tensors else []
    fit = ["fit", "--config", str(base.folder / "config.yaml"), "--trainer.fast_dev_run=true", *QUIET]
    for name, key, file in [*(files[:2] if every == 1 else ()), *files[2::every]]:
        yield name, run([*fit, f"--{key}={file}", f"--trainer.default_root_dir={place / 'run'}"])


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
