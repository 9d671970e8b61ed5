"""The 1,797 handwritten digits that come with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import Samples
from datamodules.image import ImageData, Pixels


class Digits(ImageData):
    """scikit-learn's handwritten digits: 1,797 real images, 8 by 8 pixels, always there.

    The augmentation is a random shift by one pixel.

    Args:
        augment: Augment the batches of the train loader.
    """

    name = "digits"
    num_classes = 10
    stored_shape = (1, 8, 8)
    mean, std = (0.3053,), (0.3760,)
    levels = 16

    def __init__(self, augment: bool = False, **kwargs: Any) -> None:
        super().__init__(augment=augment, **kwargs)

    def read(self) -> tuple[Samples, None]:
        """All images; the test split is cut from them."""
        found = find_spec("sklearn")  # whose import takes longer than all that is done with the digits
        assert found is not None
        assert found.origin is not None
        rows = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
        pixels = torch.from_numpy(rows[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8))
        return Samples(Pixels(pixels), rows[:, -1].copy(), "scikit-learn's load_digits"), None
