"""Street View House Numbers."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from datamodules.base import Samples
from datamodules.image import ImageData, Pixels, check_files, fetch
from eenet.files import FilePath


class SVHN(ImageData):
    """SVHN: 73,257 training and 26,032 test photographs of house digits, 32 by 32 pixels.

    Args:
        root: Folder that holds `train_32x32.mat` and `test_32x32.mat`.
        extra: Train on the 531,131 easier images of `extra_32x32.mat` too.
        download: Download what is missing.
    """

    name = "svhn"
    num_classes = 10
    stored_shape = (3, 32, 32)
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)

    def __init__(self, root: FilePath = "data", extra: bool = False, download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.extra, self.download = Path(root), extra, download

    def read(self) -> tuple[Samples, Samples]:
        """The training images, with the extra ones if asked, and the test images."""
        names = ["train", "extra"] if self.extra else ["train"]
        if self.download:
            for name in [*names, "test"]:
                fetch(partial(datasets.SVHN, self.root, name, download=True), self.root)
        files = [datasets.SVHN.split_list[name] for name in [*names, "test"]]
        check_files(self.root, [(name, check) for _, name, check in files])
        return self._samples(names), self._samples(["test"])

    def _samples(self, names: list[str]) -> Samples:
        parts = [datasets.SVHN(self.root, name) for name in names]
        pixels = torch.cat([torch.from_numpy(np.ascontiguousarray(part.data)) for part in parts])
        files = ", ".join(str(self.root / part.filename) for part in parts)
        return Samples(Pixels(pixels), np.concatenate([np.atleast_1d(part.labels) for part in parts]), files)
