"""Data modules, one file per family of data: splits, loaders and fingerprints of images and texts.

Importing this package reads no data and needs none of the text packages.
"""

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

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CIFAR100LT",
    "SVHN",
    "BBCNews",
    "Continuations",
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
