"""A run killed by SIGKILL at any moment and continued ends with the weights of an uninterrupted one."""

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import yaml

from eenet.cli.main import main
from tests._dummies import VIT


def start(config: Path, folder: Path) -> BaseProcess:
    """A training in a fork, which has the imports already."""
    args = ["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", "--ckpt_path=auto"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    process = multiprocessing.get_context("fork").Process(target=main, args=([*args, *quiet],))
    process.start()
    return process


def run(config: Path, folder: Path) -> None:
    process = start(config, folder)
    process.join()
    assert process.exitcode == 0


def kill_when(condition: Callable[[], bool], config: Path, folder: Path) -> None:
    process = start(config, folder)
    while not condition() and process.is_alive():
        time.sleep(0.01)
    assert process.is_alive(), "the run ended before it could be killed"
    process.kill()
    process.join()


def write_config(path: Path, dropout: float) -> None:
    backbone = {"class_path": "eenet.backbones.ViT", "init_args": VIT}
    head = {"class_path": "eenet.inference_modules.MLPHead", "init_args": {"hidden": 8, "dropout": dropout}}
    network = {
        "class_path": "eenet.network.EarlyExitNetwork",
        "init_args": {"backbone": backbone, "inference_module": head},
    }
    config = {
        "seed_everything": 3,
        "trainer": {"max_epochs": 6, "log_every_n_steps": 5},
        "model": {
            "class_path": "lightning_modules.JointExits",
            "init_args": {"network": network, "warmup_epochs": 3, "warmup_patience": 1, "phase_batches": 15},
        },
        "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 64, "augment": True}},
    }
    path.write_text(yaml.safe_dump(config))


def load(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def equal(a: object, b: object) -> bool:
    """Equality of nested values; tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]
    return a == b


@pytest.mark.slow
def test_a_run_killed_in_the_warm_up_and_in_a_phase_continues_bit_for_bit(tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml", dropout=0.2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tmp_path / "config.yaml", whole)
    for epoch in (0, 3):

        def reached(epoch: int = epoch) -> bool:
            return (broken / "checkpoints" / "last.ckpt").exists() and load(broken)["epoch"] >= epoch

        kill_when(reached, tmp_path / "config.yaml", broken)
        assert load(broken)["epoch"] < 5
    run(tmp_path / "config.yaml", broken)
    first, second = load(whole), load(broken)
    assert first["epoch"] == second["epoch"] == 5
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "jei_dnn"):
        assert equal(first[key], second[key]), key
    random_states = [
        next(value for name, value in checkpoint["callbacks"].items() if name.startswith("RandomState"))
        for checkpoint in (first, second)
    ]
    assert equal(*random_states)


@pytest.mark.slow
def test_killed_twenty_times_in_training_from_a_store_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    write_config(config, dropout=0.2)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"]["features"] = {"store": "disk", "views": 2, "folder": str(tmp_path / "features")}
    settings["trainer"]["max_epochs"] = 120
    config.write_text(yaml.safe_dump(settings))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(config, whole)
    moments, last = random.Random(0), broken / "checkpoints" / "last.ckpt"
    for kill in range(20):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(config, broken)  # struck at a random moment after it has trained an epoch of its own
        while process.is_alive() and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.01)
        process.join(moments.uniform(0, 1))
        assert process.is_alive(), f"the run ended before kill {kill}; give it more epochs"
        process.kill()
        process.join()
    assert 20 <= load(broken)["epoch"] + 1 < 120
    run(config, broken)
    for key in ("epoch", "state_dict", "optimizer_states", "lr_schedulers", "jei_dnn"):
        assert equal(load(whole)[key], load(broken)[key]), key
