"""What a feature store saves, and what reading a large one costs.

    python benchmarks/features.py epoch             # paired epochs through the backbone and from the store
    python benchmarks/features.py run               # a whole run, extraction included
    python benchmarks/features.py reading           # a synthetic store, as large as ImageNet's

Prints JSON; `--output` writes it, too. Pairs are interleaved and the ratio is the median of the pairs' ratios. Times of
trainings are processor time, which other work on the machine changes less than the clock's.
"""

import logging
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from report import finish

from datamodules import FashionMNIST
from datamodules.features import FeatureLoaders
from eenet.backbones import ViT
from eenet.features import FeatureOptions, FeatureStore, Layout
from eenet.features.extraction import shards
from eenet.network import EarlyExitNetwork
from lightning_modules import JointExits

BACKBONES: dict[str, dict[str, Any]] = {
    "vit_8x128_17_tokens": {"patch_size": 7, "embed_dim": 128, "depth": 8, "num_heads": 4, "global_pool": "avg"},
    "vit_tiny_12x192_50_tokens": {"patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3},
}


class Timer(Callback):
    """Processor seconds from the first to the last training batch of the last epoch, and their number."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start, self.batches = time.process_time(), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.end, self.batches = time.process_time(), self.batches + 1

    @property
    def step(self) -> float:
        return (self.end - self.start) / self.batches


def make_routine(backbone: str) -> JointExits:
    seed_everything(0, verbose=False)
    network = EarlyExitNetwork(ViT("vit_tiny_patch16_224", 10, 28, 1, overrides=BACKBONES[backbone]))
    return JointExits(network, tradeoff=0.1, warmup_epochs=1, phase_batches=200)


def fit(routine: JointExits, data: FashionMNIST, epochs: int = 1, **arguments: Any) -> Timer:
    timer = Timer()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    Trainer(max_epochs=epochs, callbacks=[timer], **quiet, **arguments).fit(routine, datamodule=data)
    return timer


def epoch(
    pairs: int = 5,
    raw_batches: int = 50,
    limit: int = 20000,
    backbones: list[str] | None = None,
    output: Path | None = None,
) -> None:
    """Time per training step of JEI-DNN through the backbone and from memory, in interleaved pairs.

    Args:
        pairs: Pairs of epochs.
        raw_batches: Batches of an epoch through the backbone; one from memory is whole.
        limit: Training images.
        backbones: Of the benchmark's, by default all.
        output: JSON file.
    """
    found = {}
    for name in backbones or BACKBONES:
        raw = FashionMNIST(augment=False, limit=limit)
        stored = FashionMNIST(augment=False, limit=limit)
        stored.prepare_data()
        loaders = FeatureLoaders(stored, make_routine(name).network, FeatureOptions())
        tables = {split: loaders.table(split) for split in ("train", "val")}  # type: ignore[arg-type]
        loaders.table = lambda split, view=None, tables=tables: tables[split]  # type: ignore[method-assign]
        stored.keep_features = lambda network, options, kept=loaders, data=stored: setattr(data, "kept", kept)  # type: ignore
        times = []
        for _ in range(pairs):
            slow = fit(make_routine(name), raw, limit_train_batches=raw_batches, limit_val_batches=1).step
            times.append((slow, fit(make_routine(name), stored, limit_val_batches=1).step))
        found[name] = {
            "raw_ms_per_step": [1e3 * slow for slow, _ in times],
            "stored_ms_per_step": [1e3 * fast for _, fast in times],
            "median_ratio": statistics.median(slow / fast for slow, fast in times),
        }
    finish(found, output)


def run(backbone: str = "vit_8x128_17_tokens", epochs: int = 15, limit: int = 6000, output: Path | None = None) -> None:
    """Time a whole run of JEI-DNN, validation and extraction included.

    Args:
        backbone: One of the benchmark's backbones.
        epochs: Of the run.
        limit: Training images.
        output: JSON file.
    """
    seconds = {}
    for name in ("raw", "stored"):
        routine, data = make_routine(backbone), FashionMNIST(augment=False, limit=limit)
        data.prepare_data()
        start = time.process_time()
        routine.features = None if name == "raw" else FeatureOptions()
        fit(routine, data, epochs)
        seconds[name] = time.process_time() - start
    finish({"backbone": backbone, **seconds, "ratio": seconds["raw"] / seconds["stored"]}, output)


def reading(
    samples: list[int] | None = None, exits: int = 12, width: int = 768, batches: int = 2000, output: Path | None = None
) -> None:
    """Read random batches of 64 from float16 stores; each size in a process of its own.

    Args:
        samples: Sizes of the stores, by default 10,000, 100,000 and as many of 1,280,000 as half the free disk holds.
        exits: Early exits.
        width: Of the features.
        batches: Batches read from each store.
        output: JSON file.
    """
    layout = Layout(((width,),) * exits, 1000, "float16")
    half = shutil.disk_usage(tempfile.gettempdir()).free // 2
    sizes = samples or [10_000, 100_000, min(1_280_000, half // layout.sample_bytes)]
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            store = FeatureStore(Path(folder), "noise", size, layout, tuple(shards(size, layout.sample_bytes)))
            write_noise(store)
            found.append(pool.apply(read, (store, batches)))
    finish({"stores": found}, output)


def write_noise(store: FeatureStore) -> None:
    store.prepare()
    block = memoryview(torch.randint(0, 60, (2**24,), dtype=torch.uint8).numpy())
    for _, path, sample_bytes in store.files:
        with path.open("wb") as file:
            left = store.samples * sample_bytes
            while left > 0:
                left -= file.write(block[: min(left, len(block))])


def read(store: FeatureStore, batches: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table = store.table()
    start = time.perf_counter()
    for _ in range(batches):
        table[torch.randint(0, store.samples, (64,))]
    return {
        "samples": store.samples,
        "gigabytes": store.num_bytes / 1e9,
        "ms_per_batch": 1e3 * (time.perf_counter() - start) / batches,
        "peak_resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "resident_megabytes_before": before / 1e6,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    auto_cli({"epoch": epoch, "run": run, "reading": reading})
