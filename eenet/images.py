"""Reading one image file as 8-bit grey or RGB, the same for training, `eenet infer` and an exported folder.

What is not 8-bit grey or RGB is converted:

* Palette, RGBA, CMYK, YCbCr and black-and-white images by Pillow; transparency is dropped, as torchvision does.
* 16-bit grey levels from 0 to 65,535 become 0 to 255, rounded.
* Floats from 0 to 1 become 0 to 255, rounded; other floats, and 32-bit integers, have no known range and are refused.
* Of several pages or frames the first is read, and an orientation that a camera noted is not applied.
"""

from __future__ import annotations

import io
import warnings
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Mode = Literal["L", "RGB"]
"""Pillow's names of 8-bit grey and of three channels of 8 bits."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""Of the files that are taken for images in a folder, lower case."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Pillow's names of the same, the only ones that bytes of unknown origin may have: others start programs."""


class UnreadableImage(Exception):
    """One image that cannot be read, and why."""


def read_image(source: str | PathLike[str] | bytes, mode: Mode) -> Image:
    """Decode an image.

    Args:
        source: Path of a file, or the bytes of one.
        mode: What it becomes.

    Raises:
        UnreadableImage: It is missing, damaged, too large, or its values have no known range.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file, formats = (io.BytesIO(source), FORMATS) if isinstance(source, bytes) else (source, None)
            with Image.open(file, formats=formats) as image:
                return eight_bits(image).convert(mode)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("not a readable image: its format is unknown") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise UnreadableImage(f"not a readable image: {error}") from error


def eight_bits(image: Image) -> Image:
    """An image whose values go from 0 to 255, if it has others.

    Raises:
        UnreadableImage: Its values have no known range.

    Example:
        >>> from PIL import Image
        >>> wide = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
        >>> np.asarray(eight_bits(wide)).tolist()
        [[0, 1, 255]]
    """
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):  # both scale to 16 bits
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise UnreadableImage(f"floats from {values.min():g} to {values.max():g}; save it with floats from 0 to 1")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode == "I":
        raise UnreadableImage("32-bit integers have no known range; save it with 8 or 16 bits")
    return image
