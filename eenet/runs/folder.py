"""The folder of a run: what lies where in it, which of its checkpoints is meant, and who trains in it."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from eenet.errors import UserError
from eenet.files import remove_left, sha256, whole
from eenet.reading import UNREADABLE

IDENTITY = "eenet"
"""Key of a checkpoint under which stands whose it is."""

FINISHED = "finished.txt"
"""File beside the checkpoints with the digest of the last one, where its training reached its end."""


@dataclass(frozen=True)
class RunFolder:
    """A run: `config.yaml`, `checkpoints`, `calibration.json`, `results.json`, figures and logs in one folder.

    What belongs to another checkpoint than the last has its name before the ending, as `results.epoch=3.json`.

    Attributes:
        path: The folder, which need not exist.
    """

    path: Path

    @property
    def config(self) -> Path:
        """How to train it again; its relative paths are relative to the folder."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.checkpoints / "last.ckpt"

    @property
    def used(self) -> bool:
        """Whether there is a checkpoint or there are results, which a new training would overwrite."""
        return any(self.checkpoints.glob("*.ckpt")) or any(self.path.glob("results*.json"))

    @property
    def finished(self) -> bool:
        """Whether the training that wrote the last checkpoint reached its end, by its epochs or by a callback."""
        note = self.checkpoints / FINISHED
        return note.is_file() and note.read_text(encoding="utf-8", errors="replace") == self._last_digest

    def finish(self) -> None:
        """Note that a training reached its end; a later one that writes another last checkpoint takes that back."""
        with whole(self.checkpoints / FINISHED) as beside:
            beside.write_text(self._last_digest, encoding="utf-8")

    @property
    def _last_digest(self) -> str:
        return sha256(self.last) if self.last.is_file() else "no last checkpoint"

    def checkpoint(self, name: str | None) -> Path:
        """The checkpoint that a name means.

        Args:
            name: `last`, the same as `None`; `best`, the best one of the run's monitored `ModelCheckpoint`; or a file,
                also by its name in `checkpoints`.

        Raises:
            UserError: There is no such checkpoint.
        """
        if name == "best":
            return self.best
        files = (self.last,) if name in (None, "last") else (Path(str(name)), self.checkpoints / str(name))
        for file in files:
            if file.is_file():
                return file
        raise UserError("ckpt_path", str(files[0]), "there is no such checkpoint; `eenet fit` makes it")

    @property
    def best(self) -> Path:
        """The best checkpoint of the monitored `ModelCheckpoint`, as the last checkpoint says.

        It is looked for in this folder, also where the run was moved or copied.

        Raises:
            UserError: No last checkpoint, none or several monitors, or the file is gone.
        """
        saved = read_checkpoint(self.checkpoint("last"), "ckpt_path")
        monitored = [state for state in checkpoint_states(saved) if state.get("monitor") and state["best_model_path"]]
        if len(monitored) != 1:
            names = ", ".join(str(state["monitor"]) for state in monitored) or "none"
            remedy = "name the file, or train with one callback ModelCheckpoint that has a `monitor`"
            raise UserError("ckpt_path", "best", f"{self.path} has checkpoints monitored by: {names}; {remedy}")
        found = Path(moved(monitored[0]["best_model_path"], saved, self.path))
        if not found.is_file():
            raise UserError("ckpt_path", "best", f"the checkpoint {found} is gone; name another")
        return found

    def tag(self, checkpoint: Path) -> str:
        """What tells a checkpoint's files from the last one's: nothing for the last, else its stem.

        A checkpoint from elsewhere has the beginning of its digest too.
        """
        if checkpoint.resolve() == self.last.resolve():
            return ""
        inside = checkpoint.resolve().parent == self.checkpoints.resolve()
        return checkpoint.stem if inside else f"{checkpoint.stem}-{sha256(checkpoint)[:8]}"

    def file(self, name: str, checkpoint: Path | None = None) -> Path:
        """Path of a file that belongs to a checkpoint, the last by default.

        Example:
            >>> RunFolder(Path("run")).file("results.json").as_posix()
            'run/results.json'
        """
        tag = self.tag(checkpoint) if checkpoint is not None else ""
        stem, dot, ending = name.rpartition(".")
        return self.path / (f"{stem}.{tag}{dot}{ending}" if tag else name)

    @contextmanager
    def training(self) -> Iterator["Training"]:
        """Hold the folder while a run trains in it, in this process; an end of the process, however it comes, frees it.

        Where an error comes before `Training.begin`, everything that was written in between is removed.

        Raises:
            UserError: Another process trains in it.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        held = FileLock(self.path.absolute() / ".fit.lock")
        before = set(self.path.rglob("*"))
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            remedy = "is being trained in by another process; wait for it, or choose another folder"
            raise UserError("trainer.default_root_dir", str(self.path), remedy) from error
        for folder in (self.path, self.checkpoints):
            remove_left(folder)
        training = Training()
        try:
            yield training
        finally:
            if not training.begun:
                remove(self.path, before)
            Path(held.lock_file).unlink(missing_ok=True)  # filelock does not take a lock on a file without a name
            held.release()
            for folder in made if not training.begun else ():
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


@dataclass
class Training:
    """Whether a training has begun, so that what it wrote stays."""

    begun: bool = False

    def begin(self) -> None:
        """From here on the folder's content stays, whatever happens."""
        self.begun = True


def remove(folder: Path, keep: set[Path]) -> None:
    """Remove what a folder holds beside some files and folders."""
    for path in folder.iterdir():
        if path in keep:
            if path.is_dir() and not path.is_symlink():
                remove(path, keep)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def digest_note(checkpoint: Path) -> Path:
    """The file beside a checkpoint that holds its SHA-256, and for a moment that of the one that it replaces."""
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and its digest beside it; until it is in its place the digest of the one before is kept."""
    note = digest_note(path)
    with whole(path) as beside:
        torch.save(checkpoint, beside)
        digest = sha256(beside)
        before = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else ""
        _write(note, f"{before}{digest}\n")
    _write(note, f"{digest}\n")


def _write(path: Path, text: str) -> None:
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def read_checkpoint(file: Path, field: str, value: str | None = None) -> dict[str, Any]:
    """Read a checkpoint of any routine; its tensors stay in the file until they are used.

    Args:
        file: The checkpoint.
        field: The configuration field that asks for it.
        value: What the field holds, the file by default.

    Raises:
        UserError: The file is damaged, or no checkpoint of eenet.
    """
    name = "" if value in (None, str(file)) else f"{file} "
    note = digest_note(file)
    if note.is_file() and sha256(file) not in note.read_text(encoding="utf-8", errors="replace").split():
        problem = f"{name}is damaged: its SHA-256 is not in {note.name}; take another, or train again"
        raise UserError(field, value or str(file), problem)
    try:
        mapped = sys.getfilesystemencoding() == "utf-8"  # torch maps no path of another encoding
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (PermissionError, torch.OutOfMemoryError):
        raise
    except UNREADABLE as error:
        problem = f"{name}is no checkpoint of eenet, or damaged ({type(error).__name__})"
        raise UserError(field, value or str(file), problem) from error
    if (missing := _missing(checkpoint)) is not None:
        raise UserError(field, value or str(file), f"{name}is no checkpoint of eenet: {missing}")
    return checkpoint


def _missing(checkpoint: Any) -> str | None:
    """What a file lacks to be a checkpoint of eenet."""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(IDENTITY), dict):
        return "it does not say whose it is"
    identity, state = checkpoint[IDENTITY], checkpoint.get("state_dict")
    kinds = {"method": str, "backbone": dict, "exits": list}
    for key, kind in kinds.items():
        if not isinstance(identity.get(key), kind):
            return f"it does not say its {key}"
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        return "it holds no weights"
    states = checkpoint.get("callbacks", {})
    if not isinstance(states, dict) or not all(isinstance(kept, dict) for kept in states.values()):
        return "its callbacks have no states"
    return None


def checkpoint_states(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """What the callbacks of class `ModelCheckpoint` keep in a checkpoint."""
    return [state for state in saved.get("callbacks", {}).values() if "best_model_path" in state]


def moved(path: str, saved: dict[str, Any], folder: Path) -> str:
    """A path of a run, after the run came from the folder that its checkpoint names to another.

    Checkpoints that do not name theirs are taken to lie in `checkpoints`.
    """
    if not path:
        return path
    before = saved[IDENTITY].get("folder")
    if before is None:
        return str(folder.absolute() / "checkpoints" / Path(path).name)
    relative = os.path.relpath(path, before)
    return path if relative.startswith("..") else os.path.normpath(folder.absolute() / relative)


def relocate(saved: dict[str, Any], folder: Path) -> None:
    """Let the callbacks of a checkpoint mean the files of the folder that the run lies in now.

    Without this a continued copy would take up the original's best checkpoint. One whose files did not come along, as
    when a new run starts from the checkpoint of another, forgets them.
    """
    for state in checkpoint_states(saved):
        best = moved(state["best_model_path"], saved, folder)
        if not Path(best).is_file():
            state |= {"dirpath": None, "best_model_path": ""}
            continue
        for key in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = moved(state.get(key) or "", saved, folder)
        kept = {moved(path, saved, folder): score for path, score in state.get("best_k_models", {}).items()}
        state["best_k_models"] = kept
