"""Data modules, one file per family of data: splits, loaders and fingerprints of images and texts.

A family is imported when it is asked for: none needs the packages of another.
"""

from typing import TYPE_CHECKING

from eenet.late import lazily

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
__getattr__ = lazily(__name__)
