"""Data modules, one file per family of data: splits, loaders and fingerprints of images and texts.

A family is imported when it is asked for: none needs the packages of another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.base import RunData, Samples, Split, SplitData, SplitDataset
    from datamodules.bbc import BBCNews
    from datamodules.cifar import CIFAR10, CIFAR100, CIFAR100LT
    from datamodules.continuations import Continuations
    from datamodules.digits import Digits
    from datamodules.fashion_mnist import FashionMNIST
    from datamodules.folder import ImageFolder
    from datamodules.image import ImageData, ImageSplit, TransformedImages
    from datamodules.imagenet import ImageNet
    from datamodules.own import OwnData
    from datamodules.photographs import PhotographData
    from datamodules.svhn import SVHN
    from datamodules.text import TextClassification, TextData, TextSplit
    from datamodules.texts import ContinuedTexts

_HOMES = {
    "BBCNews": "bbc",
    "CIFAR10": "cifar",
    "CIFAR100": "cifar",
    "CIFAR100LT": "cifar",
    "Continuations": "continuations",
    "ContinuedTexts": "texts",
    "Digits": "digits",
    "FashionMNIST": "fashion_mnist",
    "ImageData": "image",
    "ImageFolder": "folder",
    "ImageNet": "imagenet",
    "ImageSplit": "image",
    "OwnData": "own",
    "PhotographData": "photographs",
    "RunData": "base",
    "SVHN": "svhn",
    "Samples": "base",
    "Split": "base",
    "SplitData": "base",
    "SplitDataset": "base",
    "TextClassification": "text",
    "TextData": "text",
    "TextSplit": "text",
    "TransformedImages": "image",
}

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CIFAR100LT",
    "SVHN",
    "BBCNews",
    "Continuations",
    "ContinuedTexts",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "ImageNet",
    "ImageSplit",
    "OwnData",
    "PhotographData",
    "RunData",
    "Samples",
    "Split",
    "SplitData",
    "SplitDataset",
    "TextClassification",
    "TextData",
    "TextSplit",
    "TransformedImages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
