"""A LightningDataModule that knows nothing of eenet: digits as dicts."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader


def digits(rows: slice) -> list[dict[str, Any]]:
    found = load_digits()
    pixels = torch.tensor(found.images[rows], dtype=torch.float32)[:, None] / 16
    return [
        {"pixels": x, "id": i, "digit": int(y)} for i, (x, y) in enumerate(zip(pixels, found.target[rows], strict=True))
    ]


class PlainDigits(LightningDataModule):
    def setup(self, stage: str) -> None:
        self.parts = {"train": digits(slice(0, 200)), "val": digits(slice(200, 500)), "test": digits(slice(500, 700))}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["train"], batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["val"], batch_size=128)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["test"], batch_size=128)
