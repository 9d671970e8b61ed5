"""Writing files whole or not at all, content of files and of tensors, and what marks an argument that is a path."""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EACCES, ENOSPC
from glob import escape
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

FilePath = Annotated[str, "path"]
"""An argument that is the path of a file or folder; a saved run keeps it usable from anywhere."""

NameOrPath = Annotated[str, "name or path"]
"""An argument that is a path if there is such a file or folder, and a name otherwise."""

NameOrFile = Annotated[str, "name or file"]
"""An argument that is a path if there is such a file, and a name otherwise."""


def is_path(kind: str, path: Path) -> bool:
    """Whether the value of an argument annotated with one of the above is a path.

    Args:
        kind: What stands in the annotation.
        path: Where the file would lie.
    """
    return kind == "path" or (path.is_file() if kind == "name or file" else path.exists())


NO_ROOM = 2**16
"""Bytes that are free on a disk that counts as full."""

PART = ".part"
"""Ending of what is being written; a name between dots says of what."""


@contextmanager
def whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """Write a file or a folder whole or not at all, whatever ends the process.

    What is written lies beside the path, with the rights that the umask leaves, and is renamed once it is on the disk.
    A lock that ends with its process tells it from what killed processes left there, which goes first.

    Args:
        path: Where it will be; a file that is there is replaced.
        folder: Whether it is a folder, which must not be there.

    Yields:
        The path beside, an empty file or folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "note.txt")
        >>> with whole(path) as beside:
        ...     _ = beside.write_text("all of it")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('all of it', 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path.parent, escape(path.name))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        beside.mkdir() if folder else beside.touch(exist_ok=False)
    except OSError as error:
        error.filename = str(path)
        raise
    held = os.open(beside, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield beside
        rights = beside.stat().st_mode & 0o666
        for file in filter(Path.is_file, beside.rglob("*")) if folder else ():
            file.chmod(rights)  # of a library that has a rule of its own
            _sync(file)
        _sync(beside)
        os.rename(beside, path)
        _sync(path.parent)
    except OSError as error:
        name_file(error, path)
        raise
    except Exception as error:
        if shutil.disk_usage(path.parent).free < NO_ROOM:
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(path)) from error  # libraries have words of their own for it
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True) if folder else beside.unlink(missing_ok=True)
        os.close(held)


def check_writable(folder: Path) -> None:
    """Raise what writing there would, before the work whose result it is to hold.

    Args:
        folder: Is made where it is not there.

    Raises:
        PermissionError: Nothing can be written there.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(EACCES, os.strerror(EACCES), str(folder))


def name_file(error: OSError, path: Path) -> None:
    """Say in an error of writing, which knows no file, which one it was."""
    error.filename = error.filename or str(path)


def remove_left(folder: Path, name: str = "*") -> None:
    """Remove what processes left in a folder that wrote files of a name, which may be a pattern, and were killed."""
    for left in folder.glob(f".{name}.*{PART}"):
        _remove_left(left)


def _remove_left(path: Path) -> None:
    try:
        held = os.open(path, os.O_RDONLY)
    except OSError:  # gone, or not ours to touch
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError:  # it is being written
        pass
    finally:
        os.close(held)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def tensor_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of tensors in their order, in hexadecimal digits."""
    found = hashlib.sha256()
    for name, values in named:
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def size(count: float) -> str:
    """A number of bytes in the unit that fits.

    Example:
        >>> size(512), size(1500), size(2.5e6), size(1e12)
        ('512 bytes', '1.50 kB', '2.50 MB', '1,000.00 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count:.0f} bytes"


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest end of each path that no other path has.

    Example:
        >>> list(short_names([Path("/runs/a/x"), Path("/runs/b/x"), Path("/runs/y")]).values())
        ['a/x', 'b/x', 'y']
    """

    def ends(path: Path) -> list[str]:
        return ["/".join(path.parts[-length:]) for length in range(1, len(path.parts) + 1)]

    taken = [end for path in paths for end in ends(path)]
    return {path: next((end for end in ends(path) if taken.count(end) == 1), str(path)) for path in paths}
