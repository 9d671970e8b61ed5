"""Commands in forks of one process that has the imports: as they end, as a kill ends them, and what they leave.

What a kill before a change of files leaves is what lies there at that moment, so one undisturbed run gives the folders
of several kills, which the default tests take (`left_by_kills`); the slow tests and the score kill (`killed`).
"""

import io
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
from contextlib import contextmanager, redirect_stdout, suppress
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
OTHERS = (
    *("attrs", "datasets", "matplotlib.backends.backend_svg", "sympy.tensor.tensor", "timm", "torch.export._trace"),
    *(f"sklearn.{name}" for name in ("datasets", "linear_model", "metrics", "model_selection", "pipeline", "svm")),
)
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


Act = Callable[[int], None]  # before a change of files, given its number


def kill(number: int) -> None:
    """End the fork and all that it started."""
    os.killpg(0, signal.SIGKILL)


def run(
    args: list[str],
    under: Path | None = None,
    act: Act = lambda number: None,
    sent: signal.Signals | None = None,
    once: Path = Path(),
    first: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a command in a fork.

    Args:
        args: Of `eenet`.
        under: Folder in which changes of files count; their number is printed at the end.
        act: Called before each of them.
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
            os._exit(_child(args, under, act))
        while sent is not None and not once.exists():
            time.sleep(0.02)
        if sent is not None:
            os.kill(child, sent)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return Ended(code, said.read())


def _child(args: list[str], under: Path | None, act: Act) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts behind its back
    torch.set_num_threads(1)
    Figure.draw = lambda figure, renderer: None  # type: ignore[method-assign] # what takes long and changes no file
    sweep.subprocess = _InForks  # type: ignore[assignment,attr-defined]
    count = _count(under, act) if under is not None else None
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


def _count(under: Path, act: Act) -> Callable[[], int]:
    """Count changes of files under a folder, those of forks too, and act before each."""
    seen, root = memoryview(mmap.mmap(-1, 8)).cast("q"), str(under)

    def hook(event: str, args: tuple) -> None:
        changes = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        if changes and isinstance(args[0], str | os.PathLike) and os.path.abspath(args[0]).startswith(root):
            seen[0] += 1
            act(seen[0])

    sys.addaudithook(hook)
    return lambda: seen[0]


class _InForks:
    """What `eenet.cli.sweep` uses of `subprocess`, without new imports."""

    @staticmethod
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        child = os.fork()
        if child == 0:
            os._exit(_child(command[len(sweep.COMMAND) :], None, lambda number: None))
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


class Reference(NamedTuple):
    """A command that nothing disturbed.

    Attributes:
        changes: How often it changed files.
        content: What it left.
        left: A copy of that.
        before: A copy of what was there before, which is not there if nothing was.
        kills: The same of what lay there before some changes, by their numbers.
    """

    changes: int
    content: dict[str, str]
    left: Path
    before: Path
    kills: dict[int, Path]


@dataclass
class Base:
    """A finished run beside which commands are tried.

    Attributes:
        folder: Holds `config.yaml` and the runs `runs/exits` and, of the same, `runs/twin`.
        references: Commands that nothing disturbed, by name.
    """

    folder: Path
    references: dict[str, Reference] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> "Base":
        """Train, calibrate and test it; the first two are references."""
        warm()
        base = cls(folder.resolve())
        (base.work / "texts").mkdir(parents=True)
        (base.work / "config.yaml").write_text(yaml.safe_dump(config(Path("runs/exits"))))
        stored = {"store": "disk", "folder": "store"}
        (base.work / "stored.yaml").write_text(yaml.safe_dump(config(Path("runs/stored"), features=stored)))
        _write_images(base.work / "images")
        with inside(base.work):
            base.references |= {name: _refer(base, name) for name in ("fit", "calibrate")}
            ended = run(["test", "--config", "runs/exits/config.yaml", "--point", "all", *QUIET])
            assert ended.code == 0, ended.text
        base.work.rename(base.folder)
        twin = shutil.copytree(base.folder / "runs/exits", base.folder / "runs/twin")
        results = (twin / "results.json").read_text()
        (twin / "results.json").write_text(results.replace('"seed": 0', '"seed": 1'))
        return base

    @property
    def work(self) -> Path:
        """Where all commands are tried, for some files hold their own path."""
        return self.folder.with_name("work")


def warm() -> None:
    """Do once what else each fork would do: the first parsing and the first tracing of a process take seconds."""
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        main(["fit", "--config", "digits/vit_decoupled", "--print_config"])
    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(2, 1),), strict=False)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder meanwhile."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _write_decoder(folder: Path) -> None:
    """A tiny decoder and a task for it, where they are not there yet."""
    if (folder / "decoder").exists():
        return
    write_decoder(folder / "decoder", layers=2)
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
    "fit": (["fit", "--config", "config.yaml", "--ckpt_path=auto", *QUIET], "runs/exits"),
    "extraction": (
        [
            *("fit", "--config", "stored.yaml", "--trainer.default_root_dir=out/run", "--ckpt_path=auto", *QUIET),
            "--model.init_args.features.folder=out/store",
        ],
        "out",
    ),
    "sweep": (["sweep", "--config", "config.yaml", "--folder", "out", "--processes", "1"], "out"),
    "calibrate": (["calibrate", "runs/exits", "--budget", "0.5"], "runs/exits"),
    "export": (["export", "runs/exits", "--out", "out/export", "--point", "budget-0.5"], "out"),
    "infer": (["infer", "runs/exits", "--input", "images", "--output", "out/rows.csv", "--batch-size", "2"], "out"),
    "compare": (["compare", "runs/exits", "runs/twin", "--out", "out"], "out"),
    "layers": (["layers", "decoder", "--data=task.yaml", "--out=out", "--budgets=1,2", "--tokens=2"], "out"),
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


KILLS = 2  # of each reference


def reference(base: Base, name: str) -> Reference:
    """Run a command undisturbed, once per base."""
    if name not in base.references:
        NEEDS.get(name, lambda folder: None)(base.folder)
        with workplace(base, name):
            base.references[name] = _refer(base, name)
    return base.references[name]


def _refer(base: Base, name: str) -> Reference:
    """Run a command where all are tried, and copy what lies there before changes that a reservoir draws."""
    args, changed = COMMANDS[name]
    kept, changed_at = base.folder.with_name(f"copies of {name}"), base.work / changed

    def copy_some(number: int) -> None:
        slot = number - 1 if number <= KILLS else random.Random(f"{name} {number}").randrange(number)
        if slot < KILLS:
            shutil.rmtree(kept / f"{slot}", ignore_errors=True)
            copy_to(kept / f"{slot}/{number}")

    def copy_to(place: Path) -> Path:
        place.mkdir(parents=True)
        with suppress(FileNotFoundError):
            shutil.copytree(changed_at, place / "copy", symlinks=True)
        return place / "copy"

    before = copy_to(kept / "before")
    ended = run(args, changed_at, copy_some)
    assert ended.code == 0, ended.text
    left, count = copy_to(kept / "after"), int(ended.text.rpartition("changes: ")[2])
    kills = {int(place.name): place / "copy" for slot in range(KILLS) for place in (kept / f"{slot}").iterdir()}
    return Reference(count, content(left), left, before, kills)


@contextmanager
def workplace(base: Base, name: str, found: Path | None = None) -> Iterator[None]:
    """Work in a fresh copy of the base meanwhile; the folder that a command changes is another there, or none."""
    shutil.rmtree(base.work, ignore_errors=True)
    shutil.copytree(base.folder, base.work)
    changed = base.work / COMMANDS[name][1]
    shutil.rmtree(changed, ignore_errors=True)
    if found is not None and found.exists():
        shutil.copytree(found, changed, symlinks=True)
    with inside(base.work):
        yield


def left_by_kills(base: Base, name: str) -> Iterator[str | None]:
    """Run a command on what kills leave, and say what is wrong then, `None` where nothing is."""
    for at, found in reference(base, name).kills.items():
        with workplace(base, name, found):
            yield _again(base, name, at)


def killed(base: Base, name: str, moments: int, seed: int = 0) -> Iterator[str | None]:
    """Kill a command at seeded moments, run it again, and say what is wrong then, `None` where nothing is."""
    args, changed = COMMANDS[name]
    expected, draw = reference(base, name), random.Random(f"{name} {seed}")
    for at in sorted(draw.sample(range(1, expected.changes + 1), min(moments, expected.changes))):
        with workplace(base, name, expected.before):
            first = run(args, base.work / changed, lambda number, at=at: kill(number) if number == at else None)
            if first.code != -signal.SIGKILL:
                yield f"{name} at change {at}: ended with {first.code} before the kill"
            else:
                yield _again(base, name, at)


def _again(base: Base, name: str, at: int) -> str | None:
    """Run a command that was killed before a change of files, and say what is wrong then."""
    args, changed = COMMANDS[name]
    again, found, expected = run(args), content(base.work / changed), reference(base, name).content
    whole = found == expected
    if "Traceback" in again.text or (again.code != 0 and not (whole and again.clear)):
        return f"{name} at change {at}: then ended with {again.code}: {again.text[-400:]}"
    differing = sorted(path for path in found | expected if found.get(path) != expected.get(path))
    return None if whole else f"{name} at change {at}: differs or is left: {differing[:5]}"
