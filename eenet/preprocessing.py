"""What stands between an image and a model's input: it belongs to the weights, is recorded and travels with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

from eenet.errors import UserError
from eenet.images import Mode, eight_bits, read_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to a model's input.

    A photograph is resized, its centre is cut out, and its channels are normalised. Images of a data set that has
    one `stored` size and number of levels are brought to those first, as the set's own were.

    Attributes:
        size: Height and width of the input in pixels.
        mean: Mean of each channel on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        resize: Length of the short side before the centre is cut out, or height and width whatever the proportions;
            `None` where the size is right already.
        interpolation: Of the resizing; antialiased.
        mode: 8-bit grey or RGB, to which an image is converted.
        stored: Height and width that an image is brought to first.
        levels: The brightest value of a stored image.
        repeat: Copies of a grey channel that the model takes.
        source: Where all this comes from, for people.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    mode: Mode = "RGB"
    stored: tuple[int, int] | None = None
    levels: int = 255
    repeat: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        channels = 1 if self.mode == "L" else 3
        if self.mode not in get_args(Mode) or self.interpolation not in get_args(Interpolation):
            raise UserError("preprocessing", [self.mode, self.interpolation], "is no known mode and interpolation")
        for field in ("mean", "std"):
            values = getattr(self, field)
            usable = all(isinstance(value, float | int) and math.isfinite(value) for value in values)
            if len(values) != channels or not usable or (field == "std" and min(values) <= 0):
                wanted = f"needs {channels} finite number(s)" + (" above 0" if field == "std" else "")
                raise UserError(f"data.{field}", list(values), f"{wanted}, one for each channel of the image")
        scaled = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize or self.size
        if min(*self.size, *scaled) < 1 or any(a < b for a, b in zip(scaled, self.size, strict=True)):
            problem = f"must be at least the input's {self.size[0]} by {self.size[1]} pixels, which are cut out of it"
            raise UserError("data.resize", self.resize, problem)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of an input."""
        return (len(self.mean) * self.repeat, *self.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What `to_dict` gave.

        Raises:
            TypeError: A field is missing or unknown.
            UserError: A value makes no sense.
        """
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)

    @classmethod
    def from_timm(cls, config: Mapping[str, Any], source: str = "timm") -> Preprocessing:
        """What timm's `create_transform` does for evaluation with a data config.

        Args:
            config: As `timm.data.resolve_data_config` gives it.
            source: Where it comes from, for people.

        Raises:
            UserError: Images would be padded with a border, or changed otherwise than by resizing and cutting.
        """
        channels, *size = config["input_size"]
        share, kept = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
        if kept not in ("center", "squash") or channels not in (1, 3):
            raise UserError("data.preprocessing", source, f"{channels} channels, crop mode {kept}: not supported")
        scaled = [math.floor(side / share) for side in size]
        short = kept == "center" and size[0] == size[1]
        if kept == "center" and not short:
            raise UserError("data.preprocessing", source, f"cuts {size} out of proportion; give data.resize")
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if channels == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        resize = scaled[0] if short else (scaled[0], scaled[1])
        mode: Mode = "L" if channels == 1 else "RGB"
        return cls((size[0], size[1]), mean, std, resize, config["interpolation"], mode, source=source)

    @classmethod
    def from_processor(cls, config: Mapping[str, Any], source: str = "transformers") -> Preprocessing:
        """What an image processor of transformers does, from its `preprocessor_config.json`.

        Of an odd margin transformers cuts half a pixel less at the left and the top, torchvision at the other side.

        Args:
            config: The file's content.
            source: Where it comes from, for people.

        Raises:
            UserError: It changes images otherwise than by resizing, cutting the centre and normalising.
        """

        def sides(value: Any) -> tuple[int, int]:
            if isinstance(value, int):
                return value, value
            return (value["height"], value["width"]) if "height" in value else (value["shortest_edge"],) * 2

        factor, share = config.get("rescale_factor", 1 / 255), config.get("crop_pct")
        known = math.isclose(factor, 1 / 255) and not config.get("do_pad") and not config.get("do_flip_channel_order")
        if not known or not config.get("do_rescale", True):
            raise UserError(
                "data.preprocessing", source, "pads, flips or scales images in its own way; give data.mean ..."
            )
        asked = config.get("size", 224)
        short = not isinstance(asked, dict) or "shortest_edge" in asked
        size = resize = sides(asked)
        if config.get("do_center_crop"):
            size = sides(config.get("crop_size", asked))
        if (
            share is not None and size[0] < 384
        ):  # ConvNeXt's processor cuts below 384 pixels, and squeezes from there on
            resize, short = (int(size[0] / share),) * 2, True
        elif share is not None:
            short = False
        short = short and (config.get("do_center_crop") or share is not None)
        normal = config.get("do_normalize", True)
        mean = tuple(config.get("image_mean", IMAGENET_MEAN)) if normal else (0.0,) * 3
        std = tuple(config.get("image_std", IMAGENET_STD)) if normal else (1.0,) * 3
        kinds: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
        kind, scaled = kinds[config.get("resample", 2)], resize[0] if short else resize
        return cls(size, mean, std, scaled if config.get("do_resize", True) else None, kind, source=source)

    def differences(self, other: Preprocessing) -> list[str]:
        """The fields in which another one differs, but for its source."""
        names = [field.name for field in fields(self) if field.name != "source"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def at(self, size: tuple[int, int]) -> Preprocessing:
        """The same for another input size: what is cut off stays the same share.

        Example:
            >>> Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, resize=256).at((112, 112)).resize
            128
        """
        if size == self.size or self.resize is None:
            return replace(self, size=size)
        if isinstance(self.resize, int):
            return replace(self, size=size, resize=math.floor(self.resize * min(size) / min(self.size)))
        high, wide = (math.floor(r * new / old) for r, new, old in zip(self.resize, size, self.size, strict=True))
        return replace(self, size=size, resize=(high, wide))

    def __str__(self) -> str:
        resize = "no resize" if self.resize is None else f"resize {self.resize} {self.interpolation}"
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        size = f"{self.size[0]}x{self.size[1]}"
        return f"{self.mode}, {resize}, centre {size}, mean {mean}, std {std} ({self.source})"

    def read(self, source: str | PathLike[str] | bytes | Image) -> Tensor:
        """The input that an image file, its bytes or a Pillow image becomes, `(channels, height, width)`.

        Raises:
            eenet.images.UnreadableImage: It cannot be decoded.
        """
        return self.transform()(read_image(source, self.mode) if isinstance(source, str | PathLike | bytes) else source)

    def transform(self) -> Callable[[Any], Tensor]:
        """torchvision's transform of a decoded image."""
        from torchvision.transforms import InterpolationMode, ToTensor, v2

        if self.stored is not None:
            store = _Store(self.stored, self.levels)
            return v2.Compose([_Convert(self.mode), v2.PILToTensor(), store, *self.stored_steps()])
        steps: list[Any] = [_Convert(self.mode)]
        if self.resize is not None:
            sides = self.resize if isinstance(self.resize, int) else list(self.resize)
            steps.append(v2.Resize(sides, InterpolationMode(self.interpolation), antialias=True))
        # v2's ToDtype multiplies by 1 / 255, which rounds otherwise than timm's and everybody's division.
        steps += [v2.CenterCrop(list(self.size)), ToTensor()]
        repeat = [v2.RGB()] if self.repeat > 1 else []
        return v2.Compose([*steps, v2.Normalize(list(self.mean), list(self.std)), *repeat])

    def stored_steps(self) -> list[Any]:
        """The steps after an image is a uint8 tensor of the stored size and levels, none of them random."""
        import torch
        from torchvision.transforms import v2

        # Resized in float, so that a pixel of few levels is not rounded back to one of them.
        steps = [] if self.size == self.stored else [v2.ToDtype(torch.float32), v2.Resize(list(self.size))]
        mean, std = ([self.levels * value for value in values] for values in (self.mean, self.std))
        repeat = [v2.RGB()] if self.repeat > 1 else []
        return [*steps, v2.ToDtype(torch.float32), v2.Normalize(mean, std), *repeat]


@dataclass(frozen=True)
class _Convert:
    """Brings a Pillow image to 8-bit grey or RGB."""

    mode: Mode

    def __call__(self, image: Image) -> Image:
        return image if image.mode == self.mode else eight_bits(image).convert(self.mode)


@dataclass(frozen=True)
class _Store:
    """Brings a uint8 image to a stored size and number of levels."""

    size: tuple[int, int]
    levels: int

    def __call__(self, pixels: Tensor) -> Tensor:
        import torch
        from torchvision.transforms.v2 import functional as F

        if pixels.shape[1:] != self.size:
            pixels = F.resize(pixels, list(self.size), antialias=True)
        return pixels if self.levels == 255 else (pixels.float() * self.levels / 255).round().to(torch.uint8)
