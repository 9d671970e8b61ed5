"""ImageNet, and any set of photographs in its folder layout."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from datamodules.base import Samples
from datamodules.photographs import ImageFiles, PhotographData
from eenet.errors import UserError
from eenet.files import FilePath


class ImageNet(PhotographData):
    """ImageNet's folder layout: `root/train/<class>/*` and `root/val/<class>/*`, one folder per class (wnid).

    The `val` folder is the test split; validation is cut from `train`. Images of one's own with splits of one's own are
    read by `ImageFolder`.

    Args:
        root: Folder that holds `train` and `val`.
        classes: Use this many classes, the first in alphabetical order, or the named ones; `null` uses all.
    """

    name = "imagenet"

    def __init__(self, root: FilePath, classes: int | list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if classes is not None and (classes if isinstance(classes, int) else len(set(classes))) < 2:
            raise UserError("data.classes", classes, "must be at least 2 different classes")
        self.root, self.classes = Path(root), classes

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes; reads the folder names if `classes` is not given."""
        return self.classes if isinstance(self.classes, int) else len(self.class_names)

    def split_record(self) -> dict[str, Any]:
        """As for every data set, and the classes."""
        return {**super().split_record(), "classes": self.class_names}

    @cached_property
    def class_names(self) -> list[str]:
        """The folder names of the classes in use, ascending: the class number is the place in this list."""
        if isinstance(self.recalled, list):
            return self.recalled
        if isinstance(self.classes, list):
            return sorted(set(self.classes))
        names = class_folders(self.root / "train")
        if isinstance(self.classes, int) and self.classes > len(names):
            raise UserError("data.classes", self.classes, f"{self.root / 'train'} holds {len(names)} classes")
        return names[: self.classes]

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
        return Samples(ImageFiles(self.root, list(paths), self.mode), np.asarray(labels, dtype=np.int64), str(folder))


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders, ascending; a `UserError` where there is none."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        layout = "one folder per class (n01440764, n01443537, ...) with its images"
        raise UserError("data.root", str(folder), f"has to hold {layout}; ImageNet is downloaded from image-net.org")
    return names
