"""What the body of a request holds: rows of numbers, texts or images, each checked before it meets another's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from threading import Lock
from typing import Any

import numpy as np

from eenet.errors import Unreadable, said
from eenet.images import UnreadableImage
from eenet.runtime.manifest import InputSpec
from eenet.tokens import TYPES

Row = np.ndarray | dict[str, np.ndarray]
"""One input without its batch axis: an array, or arrays by name."""

WIDEST_INTEGER = 2.0**53
"""Whole numbers beyond are not exact in the doubles of JSON."""


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: Of HTTP: 400 for a body that cannot be read, 413 for one too large, 415 for another kind, 422 for rows
            that the network does not take.
        problem: What is wrong, in one line.
    """

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status, self.problem = status, problem

    def __reduce__(self) -> tuple:
        return type(self), (self.status, self.problem)


@dataclass(frozen=True)
class Inputs:
    """What a service takes.

    Args:
        specs: The tensors of an input.
        most_rows: Rows of a request.
        image: Makes an input of the bytes of an image file, where inputs are images.
        text: Makes an input of a text, or of a pair of them, where inputs are texts.
        texts: Texts of such an input.
    """

    specs: tuple[InputSpec, ...]
    most_rows: int
    image: Callable[[bytes], Any] | None = None
    text: Callable[[list[str]], Mapping[str, list[int]]] | None = None
    texts: int = 1
    _one_at_a_time: Lock = field(default_factory=Lock, compare=False)  # a tokenizer has settings that a call changes

    def read(self, content_type: str, body: bytes) -> list[Row]:
        """The rows of a request.

        Args:
            content_type: `image/...` for an image, `multipart/form-data` for several, else JSON.
            body: What was sent.

        Raises:
            Refused: It holds none, too many, or something else.
        """
        kind = content_type.partition(";")[0].strip().lower()
        if kind.startswith("image/") or kind in ("application/octet-stream", "multipart/form-data"):
            if self.image is None:
                raise Refused(415, f"no images are taken here; send JSON: {self.example}")
            files = parts(content_type, body) if kind.startswith("multipart/") else [body]
            self._count(files)
            return [self._image(number, file) for number, file in enumerate(files)]
        return self._json(body)

    @property
    def example(self) -> str:
        """What a request of two rows may be, in JSON."""
        if self.text is not None:
            return (
                '{"texts": ["one", "two"]}' if self.texts == 1 else '{"texts": [["one", "its pair"], ["two", "..."]]}'
            )
        if self.specs[0].name is None:
            return '{"inputs": [[...], [...]]}'
        return json.dumps({"inputs": {spec.name: ["...", "..."] for spec in self.specs}}).replace('"..."', "[...]")

    def _count(self, rows: Any) -> None:
        if not isinstance(rows, list):
            raise Refused(400, f"rows have to be a list, as in {self.example}")
        if not rows:
            raise Refused(422, "holds no rows")
        if len(rows) > self.most_rows:
            raise Refused(413, f"holds {len(rows)} rows; at most {self.most_rows} are taken at once")

    def _json(self, body: bytes) -> list[Row]:
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            also = "; an image needs its Content-Type, as image/png" if self.image is not None else ""
            raise Refused(400, f"the body is no JSON ({said(error, 100)}){also}") from error
        key = "inputs" if self.text is None else "texts"
        if not isinstance(values, dict) or list(values) != [key]:
            raise Refused(400, f"send an object with `{key}` alone, as {self.example}")
        if self.text is not None:
            self._count(values[key])
            return [self._text(number, row) for number, row in enumerate(values[key])]
        names = [spec.name for spec in self.specs]
        found = {None: values[key]} if names == [None] else values[key]
        if isinstance(found, dict) and set(names) - set(found) == {TYPES}:
            names.remove(TYPES)  # single texts have none but 0
        if not isinstance(found, dict) or set(found) != set(names):
            raise Refused(400, f"send {', '.join(map(str, names))} of every row, as {self.example}")
        for rows in found.values():
            self._count(rows)
        if len({len(rows) for rows in found.values()}) > 1:
            raise Refused(422, f"{', '.join(map(str, names))} have different numbers of rows")
        specs = [spec for spec in self.specs if spec.name in names]
        columns = [[numbers(spec, place, row) for place, row in enumerate(found[spec.name])] for spec in specs]
        if names == [None]:
            return list(columns[0])
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]  # type: ignore[arg-type]

    def _image(self, number: int, file: bytes) -> np.ndarray:
        assert self.image is not None
        try:
            return self.image(file).numpy()
        except (Unreadable, UnreadableImage) as error:
            raise Refused(422, f"image {number}: {error}") from error

    def _text(self, number: int, row: Any) -> dict[str, np.ndarray]:
        assert self.text is not None
        fields = [row] if isinstance(row, str) else row
        if not isinstance(fields, list) or not all(isinstance(text, str) for text in fields):
            raise Refused(422, f"texts[{number}] is no text, as in {self.example}")
        try:
            with self._one_at_a_time:
                tokens = self.text(fields)
        except Unreadable as error:
            raise Refused(422, f"texts[{number}] {error}") from error
        return {name: np.asarray(values, dtype=np.int64) for name, values in tokens.items()}


def numbers(spec: InputSpec, number: int, row: Any) -> np.ndarray:
    """One tensor of a row from lists of numbers.

    Args:
        spec: What it has to be.
        number: Of the row, for messages.
        row: Lists in lists.

    Raises:
        Refused: They are no numbers, not finite, or not of the shape.

    Example:
        >>> numbers(InputSpec(None, "float32", (2,)), 0, [1, 2.5]).tolist()
        [1.0, 2.5]
    """
    where = f"{'inputs' if spec.name is None else spec.name}[{number}]"
    try:
        values = np.array(row, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise Refused(422, f"{where} is no array of numbers whose rows are equally long") from error
    fits = values.ndim == len(spec.shape) and all(
        size in (None, length) for size, length in zip(spec.shape, values.shape, strict=True)
    )
    if not fits or not values.size:
        wanted = ", ".join("any" if size is None else str(size) for size in spec.shape)
        raise Refused(422, f"{where} is of shape {list(values.shape)}, not [{wanted}]")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(spec.dtype)
    if not np.isfinite(values).all() or not np.isfinite(cast).all():
        raise Refused(422, f"{where} holds NaN, infinity or a number beyond {spec.dtype}")
    if spec.dtype == "int64" and (np.abs(values).max() > WIDEST_INTEGER or (cast != values).any()):
        raise Refused(422, f"{where} holds something else than whole numbers")
    return cast


def parts(content_type: str, body: bytes) -> list[bytes]:
    r"""The contents of the parts of a `multipart/form-data` body, as they were sent.

    Raises:
        Refused: It is cut off, or has no boundary.

    Example:
        >>> parts("multipart/form-data; boundary=x", b"--x\r\nContent-Type: image/png\r\n\r\nbytes\r\n--x--\r\n")
        [b'bytes']
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace")) if boundary else []
    found = [piece.partition(b"\r\n\r\n") for piece in pieces[1:-1]]
    if len(pieces) < 2 or not pieces[-1].startswith(b"--") or not all(blank for _, blank, _ in found):
        raise Refused(400, "the multipart body has no boundary or is cut off")
    return [content for _, _, content in found]
