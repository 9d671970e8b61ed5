"""Photographs of any size: files, or the cells of a table, opened when they are used."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from datamodules.base import check_at_least
from datamodules.image import Images, TransformedImages
from datamodules.splits import Rows
from eenet.errors import UserError
from eenet.images import Mode, UnreadableImage, read_image
from eenet.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


class Photographs(Images):
    """Images that are decoded when they are used.

    Args:
        mode: 8-bit grey or RGB, to which they are converted.
    """

    names: np.ndarray
    """Of every image, as messages and fingerprints give it."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode

    def source(self, row: int) -> str | bytes:
        """Path of a file, or its bytes."""
        raise NotImplementedError

    def __getitem__(self, row: int) -> Image:
        try:
            return read_image(self.source(row), self.mode)
        except UnreadableImage as error:
            raise UserError("data.root", str(self.names[row]), f"{error}; replace it or leave it out") from error

    def keep(self, rows: Rows) -> None:
        """Leave only some images, in their order."""
        self.names = self.names[rows]

    def relative(self, row: int) -> str:
        """What tells an image from the others, wherever the data lie."""
        raise NotImplementedError

    def problem(self, row: int) -> str | None:
        """Why an image cannot be read, `None` where it can."""
        try:
            read_image(self.source(row), self.mode)
        except UnreadableImage as error:
            return str(error)
        return None

    def problems(self) -> dict[int, str]:
        """Why images cannot be read, by row; decodes all of them, in several threads."""
        with ThreadPoolExecutor() as pool:
            found = enumerate(pool.map(self.problem, range(len(self.names))))
            return {row: problem for row, problem in found if problem is not None}


class ImageFiles(Photographs):
    """Image files.

    Args:
        root: Folder that the paths are given below in a fingerprint.
        paths: Path of every image.
        mode: 8-bit grey or RGB, to which they are converted.
    """

    def __init__(self, root: Path, paths: list[str], mode: Mode = "RGB") -> None:
        super().__init__(mode)
        self.root, self.names = root, np.array(paths, dtype=object)

    def source(self, row: int) -> str:
        """The path."""
        return self.names[row]

    def relative(self, row: int) -> str:
        """The path below the root."""
        path = Path(self.names[row])
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def content(self, rows: Rows) -> Iterator[bytes]:
        """Relative path, size in bytes and time of change in nanoseconds."""
        for row in rows:
            stat = Path(self.names[row]).stat()
            yield f"{self.relative(row)} {stat.st_size} {stat.st_mtime_ns}".encode()


class ImageCells(Photographs):
    """Encoded images in a column of a table.

    Args:
        cell: The encoded image of a row: its bytes, or a dict with `bytes` or `path`.
        rows: The rows of the table that are used.
        source: The table, for messages.
        fingerprint: Changes whenever the table does.
        mode: 8-bit grey or RGB, to which they are converted.
    """

    def __init__(self, cell: Callable[[int], Any], rows: Rows, source: str, fingerprint: str, mode: Mode) -> None:
        super().__init__(mode)
        self.cell, self.cells, self.table, self.fingerprint = cell, rows, source, fingerprint
        self.names = np.array([f"{source}#{row}" for row in rows], dtype=object)

    def keep(self, rows: Rows) -> None:
        """Leave only some images, in their order."""
        super().keep(rows)
        self.cells = self.cells[rows]

    def source(self, row: int) -> str | bytes:
        """What the cell holds."""
        value = self.cell(int(self.cells[row]))
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, str | bytes):
            raise UnreadableImage(f"no image in the cell but {type(value).__name__}")
        return value

    def relative(self, row: int) -> str:
        """The row's number in the table."""
        return str(self.cells[row])

    def content(self, rows: Rows) -> Iterator[bytes]:
        """The table's fingerprint and the rows."""
        yield self.fingerprint.encode()
        yield self.cells[rows].astype("<i8").tobytes()


class PhotographData(TransformedImages):
    """Photographs behind a model's preprocessing; augmentation is timm's `create_transform`.

    Args:
        image_size: Side of the square input in pixels.
        channels: 3, or 1 for grey.
        augment: Augment the batches of the train loader.
        augmentation: Arguments of timm's `create_transform` in training, such as `{auto_augment: rand-m9-mstd0.5}`.
    """

    def __init__(
        self,
        image_size: int = 224,
        channels: int = 3,
        augment: bool = True,
        augmentation: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("data.image_size", image_size, 1)
        if channels not in (1, 3):
            raise UserError("data.channels", channels, "must be 3, or 1 for grey images")
        self.mode: Mode = "L" if channels == 1 else "RGB"
        self.augment, self.augmentation = augment, augmentation or {}
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
        size, resize = (image_size, image_size), round(image_size * 8 / 7)
        self._preprocessing = Preprocessing(size, mean, std, resize, mode=self.mode, source="the default")
        _ = self.transform(augment)

    @property
    def preprocessing(self) -> Preprocessing:
        """What a photograph passes when nothing is trained."""
        return self._preprocessing

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """`(channels, height, width)` of an input."""
        return self.preprocessing.input_shape

    def transform(self, augmented: bool) -> Callable[[Any], Tensor]:
        """From a Pillow image to a normalised float input.

        Raises:
            UserError: timm refuses the arguments of the augmentation.
        """
        own = self.preprocessing
        if not augmented:
            return own.transform()
        from timm.data import create_transform

        usual = {"interpolation": own.interpolation, "mean": own.mean, "std": own.std}
        try:
            return create_transform(own.size, is_training=True, **{**usual, **self.augmentation})
        except (TypeError, AssertionError, ValueError, KeyError) as error:
            raise UserError("data.augmentation", self.augmentation, f"timm refuses it: {error}") from error
