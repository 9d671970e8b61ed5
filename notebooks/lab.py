"""What the notebooks share: a quiet trainer, a backbone trained on the digits, and the exits' answers on a split."""

import logging
import os
import platform
import tempfile
import warnings
from typing import Any

warnings.filterwarnings("ignore")  # before the imports, which warn too

import torch
from lightning import Trainer, seed_everything

from datamodules import Digits, SplitData
from eenet.backbones import ViT
from eenet.calibration import Scored
from eenet.network import EarlyExitNetwork
from lightning_modules import BackboneTraining

SMALL = os.environ.get("EENET_NOTEBOOK_SMALL") == "1"
"""Take a few batches instead of whole trainings: the figures then mean nothing."""

VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "num_classes": 10,
    "image_size": 8,
    "in_channels": 1,
    "overrides": {"patch_size": 2, "embed_dim": 64, "depth": 6, "num_heads": 4, "global_pool": "avg"},
}
"""The six-block transformer of `configs/digits`."""

for name in ("lightning.pytorch", "lightning.fabric", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)


def trainer(epochs: int, **options: Any) -> Trainer:
    """A trainer that prints nothing and keeps its results in a temporary folder.

    Args:
        epochs: Passes over the training split; 1 of a few batches when `SMALL`.
        options: As for Lightning's `Trainer`.
    """
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    if SMALL:
        epochs, options = 1, {"limit_train_batches": 4, **options}
    folder = tempfile.mkdtemp(prefix="eenet-notebook-")
    return Trainer(max_epochs=epochs, default_root_dir=folder, accelerator="cpu", **quiet, **options)


def digits(**options: Any) -> Digits:
    """The digits, every evaluation split in one batch."""
    return Digits(**{"batch_size": 32, "eval_batch_size": 2000, **options})


def train_backbone(data: Digits, epochs: int = 30) -> ViT:
    """A transformer trained from scratch on the training split, as by `configs/digits/vit_backbone.yaml`."""
    seed_everything(0, verbose=False)
    backbone = ViT(**VIT)
    routine = BackboneTraining(backbone, optimizer=lambda params: torch.optim.AdamW(params, lr=3e-3, weight_decay=0.05))
    trainer(epochs).fit(routine, data)
    return backbone.eval()


def sgd(params: Any) -> torch.optim.SGD:
    """The optimizer of exits in `configs/digits`."""
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4)


@torch.no_grad()
def answers(network: EarlyExitNetwork, data: SplitData, split: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every exit's answer to a split, nothing skipped.

    Returns:
        Logits `(samples, exits, classes)`, gate scores `(samples, exits - 1)` and labels `(samples,)`.
    """
    inputs, labels = zip(*data.loader(split), strict=True)
    logits, scores = network.eval()(torch.cat(inputs))
    return logits, scores, torch.cat(labels)


def scored(network: EarlyExitNetwork, data: SplitData, split: Any) -> Scored:
    """What operating points are chosen from and judged on."""
    logits, scores, labels = answers(network, data, split)
    predictions = logits.argmax(-1)
    return Scored(predictions, scores, predictions == labels[:, None], network.costs.fractions())


def machine() -> str:
    """What the figures were made on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0))
    return f"{platform.system()} {platform.machine()}, {cores} cores, {device}, torch {torch.__version__}"
