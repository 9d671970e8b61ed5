"""Commands in forks of one process that has the imports: as they end, as a kill ends them, and what they leave."""

import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from matplotlib.figure import Figure

from eenet.cli import sweep
from eenet.cli.main import main
from eenet.files import sha256, tensor_digest
from tests._dummies.word_decoder import NOUNS, VERBS, write_decoder

COMMAND_MODULES = ("lightning", "calibrate", "export", "infer", "compare", "sweep", "layer_study")
API = tuple(f"eenet.api.{name}" for name in ("calibrating", "comparing", "exporting", "inferring", "opening"))
OWN = (
    *("datamodules.digits", "datamodules.features", "datamodules.nlg", "lightning_modules.decoupled"),
    *(f"lightning_modules.{name}" for name in ("record", "thresholds", "whole_validation")),
)
OTHERS = ("sklearn.datasets", "sklearn.metrics", "timm", "datasets", "matplotlib.backends.backend_svg", "torch._dynamo")
for _name in (*(f"eenet.cli.{name}" for name in COMMAND_MODULES), *API, *OWN, *OTHERS):
    import_module(_name)  # once, for all forks

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
"""Events of Python by which a process changes files, beside opening them to write."""

BACKBONE: dict[str, Any] = {
    "class_path": "eenet.backbones.ViT",
    "init_args": {
        "name": "vit_tiny_patch16_224",
        "num_classes": 10,
        "image_size": 8,
        "in_channels": 1,
        "overrides": {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2},
    },
}


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: Exit status, negative for a signal.
        text: Its standard output and error.
    """

    code: int
    text: str

    @property
    def clear(self) -> bool:
        """Whether it refused with one line of its own."""
        lines = [line for line in self.text.splitlines() if line.startswith("eenet: error: ")]
        return self.code == 2 and len(lines) == 1 and "Traceback" not in self.text


def run(
    args: list[str],
    at: int = 0,
    under: Path | None = None,
    sent: signal.Signals | None = None,
    once: Path = Path(),
    first: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a command in a fork.

    Args:
        args: Of `eenet`.
        at: Number of the change of files before which the fork and all that it started are killed; 0 for none.
        under: Folder in which changes count; with `at` 0 their number is printed at the end.
        sent: A signal that the fork gets.
        once: The file that is there then.
        first: What the fork does before.
    """
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
            first()
            os._exit(_child(args, at, under))
        while sent is not None and not once.exists():
            time.sleep(0.02)
        if sent is not None:
            os.kill(child, sent)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return Ended(code, said.read())


def _child(args: list[str], at: int, under: Path | None) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts behind its back
    torch.set_num_threads(1)
    Figure.draw = lambda figure, renderer: None  # type: ignore[method-assign] # what takes long and changes no file
    sweep.subprocess = _InForks  # type: ignore[assignment,attr-defined]
    count = _count(at, under) if under is not None else None
    try:
        main(args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    if count is not None:
        print(f"changes: {count()}")
    sys.stdout.flush()
    return code


def _count(at: int, under: Path) -> Callable[[], int]:
    """Count changes of files under a folder, those of forks too, and kill all at one of them."""
    seen, root = memoryview(mmap.mmap(-1, 8)).cast("q"), str(under)

    def hook(event: str, args: tuple) -> None:
        changes = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        if changes and isinstance(args[0], str | os.PathLike) and os.path.abspath(args[0]).startswith(root):
            seen[0] += 1
            if seen[0] == at:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen[0]


class _InForks:
    """What `eenet.cli.sweep` uses of `subprocess`, without new imports."""

    @staticmethod
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        child = os.fork()
        if child == 0:
            os._exit(_child(command[len(sweep.COMMAND) :], 0, None))
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def config(folder: Path, **arguments: Any) -> dict[str, Any]:
    """A configuration of exits with thresholds on a random frozen backbone."""
    gate = {"class_path": "eenet.gates.ConfidenceGate"}
    network = {"backbone": BACKBONE, "gate": gate}
    return {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder),
            "max_epochs": 2,
            "limit_train_batches": 3,
            "num_sanity_val_steps": 0,
            "logger": False,
        },
        "model": {
            "class_path": "lightning_modules.DecoupledExits",
            "init_args": {
                "network": {"class_path": "eenet.network.EarlyExitNetwork", "init_args": network},
                **arguments,
            },
        },
        "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 64}},
    }


@dataclass
class Base:
    """A finished run beside which commands are tried.

    Attributes:
        folder: Holds `config.yaml` and the runs `runs/exits` and, of the same, `runs/twin`.
        references: Commands that nothing disturbed, by name.
    """

    folder: Path
    references: dict[str, "Reference"] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> "Base":
        """Train and test it."""
        (folder / "texts").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config(Path("runs/exits"))))
        stored = {"store": "disk", "folder": "store"}
        (folder / "stored.yaml").write_text(yaml.safe_dump(config(Path("runs/stored"), features=stored)))
        _write_images(folder / "images")
        before = os.getcwd()
        os.chdir(folder)
        try:
            for args in (
                ["fit", "--config", "config.yaml", *QUIET],
                ["calibrate", "runs/exits", "--budget", "0.5"],
                ["test", "--config", "runs/exits/config.yaml", "--point", "all", *QUIET],
            ):
                ended = run(args)
                assert ended.code == 0, ended.text
        finally:
            os.chdir(before)
        twin = shutil.copytree(folder / "runs/exits", folder / "runs/twin")
        results = (twin / "results.json").read_text()
        (twin / "results.json").write_text(results.replace('"seed": 0', '"seed": 1'))
        return cls(folder)


def _write_decoder(folder: Path) -> None:
    """A tiny decoder and a task for it, where they are not there yet."""
    if (folder / "decoder").exists():
        return
    write_decoder(folder / "decoder")
    rows = [{"prompt": f"the {noun} {verb}", "reference": f"{noun} {verb}"} for noun in NOUNS for verb in VERBS]
    (folder / "task.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = {"train": None, "test": "task.jsonl", "new_tokens": 4}
    (folder / "task.yaml").write_text(yaml.safe_dump({"class_path": "datamodules.nlg.NLG", "init_args": arguments}))


def _write_images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number in range(6):
        Image.new("L", (8, 8), 40 * number).save(folder / f"{number}.png")


COMMANDS: dict[str, tuple[list[str], str]] = {
    "fit": (["fit", "--config", "config.yaml", "--trainer.default_root_dir=out", "--ckpt_path=auto", *QUIET], "out"),
    "extraction": (
        [
            *("fit", "--config", "stored.yaml", "--trainer.default_root_dir=out/run", "--ckpt_path=auto", *QUIET),
            "--model.init_args.features.folder=out/store",
        ],
        "out",
    ),
    "sweep": (["sweep", "--config", "config.yaml", "--folder", "out", "--processes", "1"], "out"),
    "calibrate": (["calibrate", "runs/twin", "--budget", "0.6"], "runs/twin"),
    "export": (["export", "runs/exits", "--out", "out/export", "--point", "budget-0.5"], "out"),
    "infer": (["infer", "runs/exits", "--input", "images", "--output", "out/rows.csv", "--batch-size", "2"], "out"),
    "compare": (["compare", "runs/exits", "runs/twin", "--out", "out"], "out"),
    "layers": (
        ["layers", "decoder", "--data", "task.yaml", "--out", "out", "--budgets", "1,4", "--tokens", "2"],
        "out",
    ),
}
"""Arguments of the commands that are killed, and the folder that they change."""

NEEDS: dict[str, Callable[[Path], None]] = {"layers": _write_decoder}
"""What makes the files of a command that the others do without, in the base's folder."""

VOLATILE = (".pt", ".txt", ".log", ".png", ".svg", ".html", "hparams.yaml", "results.json", ".sha256", "sweep.json")
"""Endings of files whose bytes hold times or paths, or whose content is compared otherwise."""


def content(folder: Path) -> dict[str, str]:
    """What a command leaves: files by path, with the digest of what has to be the same again."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock"):
        name = re.sub(r"(tfevents)\..*", r"\1", str(path.relative_to(folder)))
        while name in found:
            name += ", another one"
        if path.suffix == ".ckpt":
            saved = torch.load(path, weights_only=True)
            found[name] = tensor_digest(sorted(saved["state_dict"].items()))
        else:
            found[name] = "" if path.name.endswith(VOLATILE) or "tfevents" in path.name else sha256(path)
    return found


class Reference(NamedTuple):
    """A command that nothing disturbed: how often it changed files, what it left, and a copy of that."""

    changes: int
    content: dict[str, str]
    left: Path


def workplace(base: Base, place: Path) -> None:
    """A fresh copy of the base."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base.folder, place)
    os.chdir(place)


def reference(base: Base, name: str, place: Path) -> Reference:
    """Run a command undisturbed, once per base."""
    if name not in base.references:
        args, changed = COMMANDS[name]
        NEEDS.get(name, lambda folder: None)(base.folder)
        workplace(base, place)
        ended = run(args, 0, place / changed)
        assert ended.code == 0, ended.text
        count = int(ended.text.rpartition("changes: ")[2])
        left = shutil.copytree(place / changed, base.folder.with_name(f"left by {name}"))
        base.references[name] = Reference(count, content(left), left)
    return base.references[name]


def killed(base: Base, name: str, moments: int, place: Path, seed: int = 0) -> Iterator[str | None]:
    """Kill a command at seeded moments, run it again, and say what is wrong then, `None` where nothing is."""
    before, place = os.getcwd(), place.resolve()
    args, changed = COMMANDS[name]
    try:
        expected = reference(base, name, place)
        draw = random.Random(f"{name} {seed}")
        for at in sorted(draw.sample(range(1, expected.changes + 1), min(moments, expected.changes))):
            workplace(base, place)
            first = run(args, at, place / changed)
            again = run(args)
            found = content(place / changed)
            whole = found == expected.content
            if first.code != -signal.SIGKILL:
                yield f"{name} at change {at}: ended with {first.code} before the kill"
            elif "Traceback" in again.text or (again.code != 0 and not (whole and again.clear)):
                yield f"{name} at change {at}: then ended with {again.code}: {again.text[-400:]}"
            else:
                paths = found | expected.content
                differing = sorted(path for path in paths if found.get(path) != expected.content.get(path))
                yield None if whole else f"{name} at change {at}: differs or is left: {differing[:5]}"
    finally:
        os.chdir(before)
