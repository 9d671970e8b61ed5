"""Content of files and of tensors."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


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
