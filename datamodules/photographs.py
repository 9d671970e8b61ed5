"""Photographs of any size: files, or the cells of a table, opened when they are used."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from datamodules.base import check_at_least
from datamodules.image import Images, TransformedImages
from datamodules.splits import Rows
from eenet.errors import UserError
from eenet.images import Mode, UnreadableImage, read_image
from eenet.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from eenet.rank_zero import rank_zero_info

Source = Literal["auto", "model", "data"]
"""Whose preprocessing is taken."""

MOST_MEASURED = 1000
"""Images whose mean and deviation stand for all."""


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

    The preprocessing is the checkpoint's that is continued or built upon, else that of the model's weights, else has
    the training images' own mean and deviation. What is given here replaces parts of it, except a checkpoint's.

    Args:
        image_size: Side of the square input in pixels; `null` takes the model's.
        channels: 3, or 1 for grey; `null` takes the model's.
        preprocessing: `auto`, `model` (refuse weights that say none) or `data` (whatever the weights say).
        mean: Mean of each channel on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        resize: Length of the short side before the centre is cut out, or height and width whatever the proportions.
        interpolation: Of the resizing: `bilinear`, `bicubic`, `nearest`, `lanczos`, `box` or `hamming`.
        augment: Augment the batches of the train loader.
        augmentation: Arguments of timm's `create_transform` in training, such as `{auto_augment: rand-m9-mstd0.5}`.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        preprocessing: Source = "auto",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        resize: int | list[int] | None = None,
        interpolation: Interpolation | None = None,
        augment: bool = True,
        augmentation: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("data.image_size", 1 if image_size is None else image_size, 1)
        if channels not in (None, 1, 3):
            raise UserError("data.channels", channels, "must be 3, or 1 for grey images")
        if preprocessing not in get_args(Source):
            raise UserError("data.preprocessing", preprocessing, f"must be one of {', '.join(get_args(Source))}")
        self.size = None if image_size is None else (image_size, image_size)
        self.channels, self.taken_from = channels, preprocessing
        given = {"mean": mean, "std": std, "resize": resize, "interpolation": interpolation}
        self.given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value is not None
        }
        self.augment, self.augmentation = augment, augmentation or {}
        self.settled: Preprocessing | None = None
        _ = self.transform(augment)

    @property
    def preprocessing(self) -> Preprocessing:
        """What a photograph passes when nothing is trained; until a model is known, ImageNet's usual one."""
        resize = self.given.get("resize", 224)
        high, wide = (resize, resize) if isinstance(resize, int) else resize
        size = self.size or (min(224, high), min(224, wide))
        return self.settled or self._with_given(self._usual(self.channels or 3, size))

    @property
    def mode(self) -> Mode:
        """8-bit grey or RGB, to which images are converted."""
        return self.preprocessing.mode

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """`(channels, height, width)` of an input."""
        return self.preprocessing.input_shape

    def settle(
        self, recorded: Preprocessing | None, of_model: Preprocessing | None, input_shape: tuple[int, ...] | None
    ) -> None:
        """Take the preprocessing of a checkpoint, of a model's weights, or of the training images; see the class.

        Args:
            recorded: What a checkpoint was trained with.
            of_model: What the weights of the model expect.
            input_shape: `(channels, height, width)` that the model takes.

        Raises:
            UserError: The checkpoint was trained with another than is given here, or the model has none.
        """
        channels, *size = input_shape if input_shape is not None and len(input_shape) == 3 else (3, 224, 224)
        wanted = self.size or (size[0], size[1])
        if recorded is not None:
            self.settled = recorded
            asked = {**self.given, **({} if self.size is None else {"size": self.size})}
            for name, value in asked.items():
                if getattr(recorded, name) != value:
                    problem = f"the checkpoint was trained with {getattr(recorded, name)!r}; leave it out to adopt that"
                    raise UserError(f"data.{'image_size' if name == 'size' else name}", value, problem)
        elif of_model is not None and self.taken_from != "data":
            self.settled = self._with_given(of_model.at(wanted))
        elif self.taken_from == "model":
            remedy = "the weights do not say how they expect images; give data.mean, data.std, data.resize, ..."
            raise UserError("data.preprocessing", "model", remedy)
        else:
            self.settled = self._with_given(self._usual(self.channels or channels, wanted))
            if not {"mean", "std"} <= self.given.keys():
                self.settled = self._with_given(self._measured(self.settled))
        for samples, _ in vars(self).get("_splits", {}).values():
            samples.inputs.mode = self.settled.mode
        rank_zero_info(f"preprocessing: {self.settled}")

    def _usual(self, channels: int, size: tuple[int, int]) -> Preprocessing:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
        mode: Mode = "L" if channels == 1 else "RGB"
        return Preprocessing(size, mean, std, round(min(size) * 8 / 7), mode=mode, source="the default")

    def _with_given(self, base: Preprocessing) -> Preprocessing:
        changed = ", ".join(self.given)
        return replace(base, **self.given, source=f"{base.source}, {changed} given") if changed else base

    def _measured(self, usual: Preprocessing) -> Preprocessing:
        """With mean and deviation of the training images at the input's size, or of evenly spaced ones of many."""
        plain = replace(usual, mean=(0.0,) * len(usual.mean), std=(1.0,) * len(usual.std)).transform()
        self.settled = usual
        samples, rows = self._splits["train"]
        samples.inputs.mode = usual.mode
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_MEASURED)).astype(int)]
        pixels = (plain(samples.inputs[row]).flatten(1).double() for row in chosen)
        mean, square = torch.stack([torch.stack([each.mean(1), each.square().mean(1)]) for each in pixels]).mean(0)
        deviation = (square - mean**2).clamp(min=1e-6).sqrt()
        source = f"the statistics of {len(chosen):,} training images"
        mean, deviation = (tuple(round(value, 4) for value in values.tolist()) for values in (mean, deviation))
        return replace(usual, mean=mean, std=deviation, source=source)

    def split_record(self) -> dict[str, Any]:
        """As for every data set, and the preprocessing."""
        return {**super().split_record(), "preprocessing": self.preprocessing.to_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise a `UserError` for a checkpoint made on another split or with other preprocessing."""
        own, recorded = self.preprocessing, state_dict.get("preprocessing", self.preprocessing.to_dict())
        for name in own.differences(Preprocessing.from_dict(recorded)):
            problem = f"the checkpoint was trained with {recorded[name]!r}"
            raise UserError(f"data.{name}", getattr(own, name), problem)
        super().load_state_dict({**state_dict, "preprocessing": own.to_dict()})

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
