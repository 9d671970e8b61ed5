"""Content of files and of tensors, and what marks an argument that is a path."""

import hashlib
from collections.abc import Iterable, Sequence
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
