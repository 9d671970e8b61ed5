"""Content of files, and what marks an argument that is a path."""

import hashlib
from pathlib import Path
from typing import Annotated

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
