"""ImageNet, and any set of photographs in its folder layout."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, make_dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from datamodules.base import Samples
from datamodules.image import ImageData
from datamodules.splits import Rows
from eenet.errors import UserError
from eenet.files import FilePath


class ImageFiles:
    """Images on disk.

    Args:
        root: Folder that the paths are given below in a fingerprint.
        paths: Path of every image.
    """

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths = root, np.array(paths, dtype=object)

    def __getitem__(self, row: int) -> Tensor:
        try:
            return pil_to_tensor(default_loader(self.paths[row]))
        except (OSError, SyntaxError) as error:
            raise UserError("data.root", self.paths[row], f"not a readable image ({error}); replace it") from error

    def content(self, rows: Rows) -> Iterator[bytes]:
        """Relative path, size in bytes and time of change in nanoseconds."""
        for path in map(Path, self.paths[rows]):
            stat = path.stat()
            yield f"{path.relative_to(self.root).as_posix()} {stat.st_size} {stat.st_mtime_ns}".encode()


class ImageNet(ImageData):
    """ImageNet's folder layout: `root/train/<class>/*` and `root/val/<class>/*`, one folder per class (wnid).

    The `val` folder is the test split; validation is cut from `train`. Evaluation resizes the short side to 8/7 of
    `image_size` and crops the centre; augmentation is a random resized crop and a flip.

    Args:
        root: Folder that holds `train` and `val`.
        classes: Use this many classes, the first in alphabetical order, or the named ones; `null` uses all.
        image_size: Side of the square input in pixels.
    """

    name = "imagenet"
    stored_shape = (3, 0, 0)  # photographs have no common size
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self, root: FilePath, classes: int | list[str] | None = None, image_size: int = 224, **kwargs: Any
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        if classes is not None and (classes if isinstance(classes, int) else len(set(classes))) < 2:
            raise UserError("data.classes", classes, "must be at least 2 different classes")
        self.root, self.classes = Path(root), classes

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes; reads the folder names if `classes` is not given."""
        return self.classes if isinstance(self.classes, int) else len(self.class_names)

    @cached_property
    def class_names(self) -> list[str]:
        """The folder names of the classes in use, ascending: the class number is the place in this list."""
        if isinstance(self.classes, list):
            return sorted(set(self.classes))
        names = class_folders(self.root / "train")
        if isinstance(self.classes, int) and self.classes > len(names):
            raise UserError("data.classes", self.classes, f"{self.root / 'train'} holds {len(names)} classes")
        return names[: self.classes]

    def geometry(self, augmented: bool) -> list[nn.Module]:
        """Random resized crop and flip, or short side and centre crop."""
        if augmented:
            return [v2.RandomResizedCrop(self.image_size), v2.RandomHorizontalFlip()]
        return [v2.Resize(round(self.image_size * 8 / 7)), v2.CenterCrop(self.image_size)]

    def read(self) -> tuple[Samples, Samples]:
        """The paths and classes of both folders; images are opened when they are used."""
        return self._samples("train"), self._samples("val")

    def _samples(self, part: str) -> Samples:
        folder = self.root / part
        missing = sorted(set(self.class_names) - set(class_folders(folder)))
        if missing:
            raise UserError("data.root", str(folder), f"misses the folders of the classes {', '.join(missing[:5])}")
        classes = {name: number for number, name in enumerate(self.class_names)}
        try:
            found = make_dataset(str(folder), classes, extensions=IMG_EXTENSIONS)
        except FileNotFoundError as error:
            raise UserError("data.root", str(folder), f"a class has no images: {error}") from error
        paths, labels = zip(*found, strict=True)
        return Samples(ImageFiles(self.root, list(paths)), np.asarray(labels, dtype=np.int64), str(folder))


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders, ascending.

    Raises:
        UserError: If there is none.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        layout = "one folder per class (n01440764, n01443537, ...) with its images"
        raise UserError("data.root", str(folder), f"has to hold {layout}; ImageNet is downloaded from image-net.org")
    return names
