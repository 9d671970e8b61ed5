"""How new inputs are read as the data of a run are: images behind its preprocessing, texts behind its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.errors import Unreadable
from eenet.images import SUFFIXES, UnreadableImage, read_image


class ImageReader:
    """Images behind a run's preprocessing.

    Args:
        data: The run's data.
    """

    suffixes = SUFFIXES
    columns = ["path"]

    def __init__(self, data: Any) -> None:
        self.mode, self.transform = data.preprocessing.mode, data.preprocessing.transform()

    def file(self, path: Path) -> Tensor:
        """Open, convert, transform."""
        try:
            return self.transform(read_image(path, self.mode))
        except UnreadableImage as error:
            raise Unreadable(str(error)) from error

    def fields(self, fields: list[str], base: Path) -> Tensor:
        """The image at a path, relative to the file that names it."""
        return self.file(base / fields[0])

    def collate(self, inputs: list[Tensor]) -> Tensor:
        """`(batch, channels, height, width)`."""
        return torch.stack(inputs)


class TextReader:
    """Texts behind a run's tokenizer.

    Args:
        data: The run's data.
    """

    suffixes = (".txt",)

    def __init__(self, data: Any) -> None:
        self.data = data
        self.columns = list(getattr(data, "columns", ["text"]))

    def file(self, path: Path) -> dict[str, list[int]]:
        """The whole file is one text."""
        try:
            return self.fields([path.read_text(encoding="utf-8")], path.parent)
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable(f"no readable text ({error})") from error

    def fields(self, fields: list[str], base: Path) -> dict[str, list[int]]:
        """A text, or a pair of texts."""
        if len(fields) != len(self.columns) or not all(isinstance(text, str) and text.strip() for text in fields):
            raise Unreadable(f"needs {len(self.columns)} text(s) that are not empty")
        return dict(self.data.tokenizer(*fields, truncation=True, max_length=self.data.max_length))

    def collate(self, inputs: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Each `(batch, longest)`."""
        return self.data.collate([(tokens, 0) for tokens in inputs])[0]
