"""Images: the transform, the data set behind it, and the checks of files on disk."""

import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.base import Samples, SplitData, SplitDataset, check_at_least
from datamodules.readers import ImageReader
from datamodules.splits import Rows
from eenet.errors import UserError
from eenet.preprocessing import Preprocessing

CHUNK = 1024
"""Images hashed at a time, so that a fingerprint never copies a whole data set."""


class Images(Protocol):
    """Stored images: row `i` is a uint8 tensor `(channels, height, width)`, or a Pillow image of any size."""

    def __getitem__(self, row: int) -> Any: ...

    def content(self, rows: Rows) -> Iterator[bytes]:
        """Bytes that change whenever one of these images would."""
        ...


class Pixels:
    """Images in memory.

    Args:
        pixels: `(images, channels, height, width)`, uint8.
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __getitem__(self, row: int | Rows) -> Tensor:
        return self.pixels[row]

    def content(self, rows: Rows) -> Iterator[bytes]:
        """The pixels."""
        for start in range(0, len(rows), CHUNK):
            yield self.pixels[rows[start : start + CHUNK]].numpy().tobytes()


@dataclass(frozen=True)
class Normalize:
    """What torchvision's steps of the same description do, without its import: opening a run need not wait for it.

    Args:
        mean: Of each channel.
        std: The same.
    """

    mean: list[float]
    std: list[float]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised floats, `(..., channels, height, width)`."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() - mean) / std

    def __repr__(self) -> str:
        normal = f"Normalize(mean={self.mean}, std={self.std}, inplace=False)"
        return f"Compose(\n      ToDtype(scale=False)\n      {normal}\n)"


class ImageSplit(SplitDataset):
    """Some images behind a transform.

    Random transforms draw from the global generators of torch, Python and numpy, unless `epoch` is set: then what a
    sample becomes is a function of the seed, the epoch and the sample alone, however many processes load it.

    Args:
        samples: The samples as stored; their inputs are `Images`.
        rows: The rows of this split.
        transform: From a stored image to a float input, `(channels, height, width)`.
        seed: Seed of the augmentation.
        augmented: Whether the transform is random.
    """

    epoch: int | None = None

    def __init__(
        self, samples: Samples, rows: Rows, transform: Callable[[Any], Tensor], seed: int, augmented: bool
    ) -> None:
        super().__init__(samples, rows)
        self.transform, self.seed, self.augmented = transform, seed, augmented

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        row = int(self.rows[item])
        image, label = self.inputs[row], int(self.labels[item])
        if self.epoch is None:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            entropy = int(np.random.SeedSequence([self.seed, self.epoch, row]).generate_state(1, np.uint64)[0])
            torch.default_generator.manual_seed(entropy)
            before = random.getstate(), np.random.get_state()  # timm's transforms draw from these
            random.seed(entropy)
            np.random.seed(entropy % 2**32)
            try:
                return self.transform(image), label
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])

    def __getitems__(self, items: list[int]) -> list[tuple[Any, int]] | UserError:
        """Several items; what is not random is done to images in memory at once."""
        if self.augmented or not isinstance(self.inputs, Pixels):
            return super().__getitems__(items)
        images = self.transform(self.inputs[self.rows[items]])
        return list(zip(images, self.labels[items].tolist(), strict=True))

    def content(self) -> Iterator[bytes]:
        """The transform and the images."""
        yield repr(self.transform).encode()
        yield from self.inputs.content(self.rows)


class TransformedImages(SplitData):
    """Images behind a transform, which training samples pass with augmentation where that is asked for.

    Attributes:
        augment: Augment the batches of the train loader.
    """

    augment: bool

    @abstractmethod
    def transform(self, augmented: bool) -> Callable[[Any], Tensor]:
        """From a stored image to a float input; its `repr` says all that it does."""

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """What an image from elsewhere passes to become such an input."""

    def reader(self) -> ImageReader:
        """What reads new images as these are."""
        return ImageReader(self)

    def build(self, samples: Samples, rows: Rows, augmented: bool) -> ImageSplit:
        """Some images behind the evaluation or the augmenting transform."""
        return ImageSplit(samples, rows, self.transform(augmented), self.seed, augmented)

    def train_dataset(self) -> SplitDataset:
        """The training split, augmented if `augment` says so, by the epoch that the sampler tells."""
        dataset = self.dataset("train", augmented=self.augment)
        if self.augment:
            dataset.epoch = 0  # type: ignore[attr-defined]
        return dataset


class ImageData(TransformedImages):
    """Stored images of one size: resize, normalisation with the set's own mean and deviation, standard augmentation.

    Augmentation is a random crop after zero padding, and a horizontal flip where a mirrored image keeps its class.

    Args:
        image_size: Side of the square input in pixels, resized bilinearly; `null` keeps the stored size.
        channels: 3 turns a grey image into three equal channels; `null` keeps the stored channels.
        augment: Augment the batches of the train loader.

    Attributes:
        stored_shape: `(channels, height, width)` of a stored image.
        mean: Mean of the training pixels per channel, on the scale 0 to 1.
        std: Their standard deviation, on the same scale.
        levels: The brightest pixel value.
        flips: Whether a mirrored image keeps its class.
        padding: Zero pixels on every side before the random crop; an eighth of the side where `None`.
    """

    stored_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: int = 255
    flips: bool = False
    padding: int | None = None

    def __init__(
        self, image_size: int | None = None, channels: int | None = None, augment: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        stored_channels, height, _ = self.stored_shape
        self.image_size = height if image_size is None else image_size
        check_at_least("data.image_size", self.image_size, 1)
        self.channels = stored_channels if channels is None else channels
        if self.channels not in (stored_channels, 3):
            raise UserError("data.channels", channels, f"{self.name} can be {stored_channels} or 3 channels")
        self.augment = augment
        self.input_shape = (self.channels, self.image_size, self.image_size)

    def transform(self, augmented: bool) -> Callable[[Any], Tensor]:
        """From a stored uint8 image to a normalised float input."""
        made = self.preprocessing
        if not augmented and made.size == made.stored and made.repeat == 1:
            return Normalize(*([self.levels * value for value in values] for values in (self.mean, self.std)))
        from torchvision.transforms import v2

        side = self.stored_shape[-1]
        steps: list[nn.Module] = []
        if augmented:
            steps.append(v2.RandomCrop(side, padding=side // 8 if self.padding is None else self.padding))
        if augmented and self.flips:
            steps.append(v2.RandomHorizontalFlip())
        return v2.Compose([*steps, *made.stored_steps()])

    @property
    def preprocessing(self) -> Preprocessing:
        """The data set's own size, levels, mean and deviation, then the input's size."""
        channels, height, width = self.stored_shape
        return Preprocessing(
            (self.image_size, self.image_size),
            self.mean,
            self.std,
            mode="L" if channels == 1 else "RGB",
            stored=(height, width),
            levels=self.levels,
            repeat=self.channels // channels,
            source=f"the statistics of {self.name}",
        )


def check_files(root: Path, files: Iterable[tuple[str, str]]) -> None:
    """Raise a `UserError` that names the files below `root` that are missing or have another MD5 sum."""
    from torchvision.datasets.utils import check_integrity

    remedy = "set data.init_args.download: true"
    expected = dict(files)
    missing = [name for name in expected if not (root / name).is_file()]
    if missing:
        problem = f"the folder has to hold {', '.join(expected)} and misses {', '.join(missing)}"
        raise UserError("data.root", str(root), f"{problem}; put them there or {remedy}")
    damaged = [name for name, check in expected.items() if not check_integrity(str(root / name), check)]
    if damaged:
        raise UserError("data.root", str(root), f"damaged {', '.join(damaged)} (wrong MD5 sum); delete and {remedy}")


def fetch(download: Callable[[], object], root: Path) -> None:
    """Run a download of torchvision's; a `UserError` where it fails."""
    try:
        download()
    except (OSError, RuntimeError) as error:
        raise UserError("data.download", True, f"downloading to {root} failed: {error}") from error
