"""Fashion-MNIST in the IDX format, as Debian and torchvision keep it."""

import gzip
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from datamodules.base import Samples, check_at_least
from datamodules.image import ImageData, Pixels, fetch
from datamodules.splits import Labels, Rows, stratified_split
from eenet.errors import UserError
from eenet.files import FilePath

PACKAGE = "dataset-fashion-mnist"
FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


class FashionMNIST(ImageData):
    """Fashion-MNIST: 60,000 training and 10,000 test images of 10 kinds of clothing, 28 by 28 grey pixels.

    Args:
        root: Folder with the four IDX files, plain or gzipped, or with `FashionMNIST/raw` that holds them; `null` means
            the folder of the Debian package `dataset-fashion-mnist` if it is installed, else `data`.
        limit: Use this many training images, a seeded stratified choice, for quick runs; `null` uses all.
        download: Download what is missing.
    """

    name = "fashion_mnist"
    num_classes = 10
    stored_shape = (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)
    flips = True
    padding = 1  # the clothes fill the frame

    def __init__(
        self, root: FilePath | None = None, limit: int | None = None, download: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if limit is not None:
            check_at_least("data.limit", limit, self.num_classes)
        self.root, self.limit, self.download = root, limit, download

    def read(self) -> tuple[Samples, Samples]:
        """The training and the test images."""
        root = Path(self.root) if self.root is not None else debian_folder() or Path("data")
        files = find_files(root)
        if files is None and self.download:
            fetch(lambda: datasets.FashionMNIST(root, download=True), root)
            files = find_files(root)
        if files is None:
            names = ", ".join(f"{name}[.gz]" for name in FILES)
            remedy = f"set data.init_args.download: true, or `apt install {PACKAGE}` and leave data.root out"
            problem = f"neither this folder nor its FashionMNIST/raw holds all of {names}; put them there, {remedy}"
            raise UserError("data.root", str(root), problem)
        return read_pair(*files[:2]), read_pair(*files[2:])

    def keep(self, labels: Labels) -> Rows:
        """All rows, or a stratified choice of `limit`."""
        rows = super().keep(labels)
        if self.limit is None or self.limit >= len(rows):
            return rows
        return stratified_split(labels, rows, self.limit / len(rows), self.seed, "data.limit")[1]


def debian_folder() -> Path | None:
    """The folder of the Debian package with the data, as dpkg knows it, or `None`."""
    if shutil.which("dpkg") is None:
        return None
    listing = subprocess.run(["dpkg", "-L", PACKAGE], capture_output=True, text=True, check=False).stdout
    found = [Path(line).parent for line in listing.splitlines() if Path(line).stem == FILES[0]]
    return found[0] if found else None


def find_files(root: Path) -> list[Path] | None:
    """The four IDX files, plain or gzipped, in the order of `FILES`, from the first folder that holds them all."""
    for folder in (root, root / "FashionMNIST" / "raw"):
        files = [next(filter(Path.is_file, (folder / name, folder / f"{name}.gz")), None) for name in FILES]
        found = [path for path in files if path is not None]
        if len(found) == len(FILES):
            return found
    return None


def read_pair(images: Path, labels: Path) -> Samples:
    """Read a file of images and the file of their labels.

    Raises:
        UserError: If a file is damaged or the two do not belong together.
    """
    pixels, classes = read_idx(images, read_image_file), read_idx(labels, read_label_file)
    if pixels.shape[1:] != FashionMNIST.stored_shape[1:]:
        raise UserError("data.root", str(images), f"holds images of {tuple(pixels.shape[1:])} pixels, not (28, 28)")
    if len(pixels) != len(classes):
        problem = f"holds {len(classes)} labels for the {len(pixels)} images of {images.name}"
        raise UserError("data.root", str(labels), problem)
    return Samples(Pixels(pixels[:, None]), classes.numpy().astype(np.int64), str(labels))


def read_idx(path: Path, parse: Callable[[str], Tensor]) -> Tensor:
    """Read an IDX file, plain or gzipped, with torchvision's parser; a `UserError` where it is not whole."""
    try:
        if path.suffix != ".gz":
            return parse(str(path))
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder, path.stem)
            with gzip.open(path) as packed, plain.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            return parse(str(plain))
    except (OSError, EOFError, zlib.error, ValueError, TypeError, AssertionError, KeyError, RuntimeError) as error:
        problem = f"not a whole IDX file ({error or type(error).__name__}); copy or download it again"
        raise UserError("data.root", str(path), problem) from error
