"""CIFAR-10, CIFAR-100 and the long-tailed CIFAR-100."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from datamodules.base import Samples
from datamodules.image import ImageData, Pixels, check_files, fetch
from datamodules.splits import Labels, Rows, long_tailed
from eenet.errors import UserError
from eenet.files import FilePath


class CIFAR10(ImageData):
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes, 32 by 32 pixels.

    Args:
        root: Folder that holds `cifar-10-batches-py`.
        download: Download what is missing.
    """

    name = "cifar10"
    num_classes = 10
    stored_shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    flips = True
    source: Callable[..., Any] = datasets.CIFAR10

    def __init__(self, root: FilePath = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.download = Path(root), download

    def read(self) -> tuple[Samples, Samples]:
        """The training and the test images, after torchvision's checksums."""
        return read_cifar(self.source, self.root, self.download)


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images of 100 classes, 32 by 32 pixels.

    Args:
        root: Folder that holds `cifar-100-python`.
        download: Download what is missing.
    """

    name = "cifar100"
    num_classes = 100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    source = datasets.CIFAR100


class CIFAR100LT(CIFAR100):
    """Long-tailed CIFAR-100: class sizes fall exponentially, the test split stays balanced.

    Class `c` keeps `round(500 * imbalance_ratio ** (c / 99))` training images, from which validation is then cut.

    Args:
        imbalance_ratio: Size of the rarest class over that of the most frequent, in (0, 1].
    """

    name = "cifar100_lt"

    def __init__(self, imbalance_ratio: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < imbalance_ratio <= 1:
            raise UserError("data.imbalance_ratio", imbalance_ratio, "must be above 0 and at most 1")
        self.imbalance_ratio = imbalance_ratio

    def keep(self, labels: Labels) -> Rows:
        """The rows of the long tail."""
        return long_tailed(labels, self.imbalance_ratio, self.seed)


def read_cifar(source: Any, root: Path, download: bool) -> tuple[Samples, Samples]:
    """Read one of torchvision's CIFAR sets.

    Args:
        source: `torchvision.datasets.CIFAR10` or `CIFAR100`.
        root: Folder that holds the data set's own folder.
        download: Download what is missing.

    Returns:
        Training and test samples.

    Raises:
        UserError: If a file is missing or damaged, or the download fails.
    """
    if download:
        fetch(lambda: source(root, download=True), root)
    files = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    check_files(root, [(f"{source.base_folder}/{name}", check) for name, check in files])
    parts = [source(root, train=train) for train in (True, False)]
    train, test = (
        Samples(
            Pixels(torch.from_numpy(part.data.transpose(0, 3, 1, 2).copy())),
            np.asarray(part.targets, dtype=np.int64),
            str(root / source.base_folder),
        )
        for part in parts
    )
    return train, test
