"""Writers of tiny data sets in the formats that the real ones have on disk."""

import gzip
import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image


def random_images(labels: np.ndarray, *shape: int) -> np.ndarray:
    return np.random.RandomState(len(labels)).randint(0, 256, (len(labels), *shape), dtype=np.uint8)


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write_fashion(folder: Path, train: np.ndarray, test: np.ndarray, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, labels in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", random_images(labels, 28, 28)), ("labels-idx1", labels)):
            data, name = idx_bytes(values), f"{part}-{kind}-ubyte"
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(data) if packed else data)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, source: type, key: str, train: np.ndarray, test: np.ndarray) -> dict[str, object]:
    """Write the pickles of a CIFAR set; returns the class attributes that hold their checksums."""
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in source.train_list]
    parts = dict(zip(names, np.array_split(train, len(names)), strict=True)) | {source.test_list[0][0]: test}
    for name, labels in parts.items():
        entry = {"data": random_images(labels, 3072), key: labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    meta = folder / source.meta["filename"]
    meta.write_bytes(pickle.dumps({source.meta["key"]: [str(c) for c in np.unique(train)]}))
    return {
        "train_list": [[name, md5(folder / name)] for name in names],
        "test_list": [[name, md5(folder / name)] for name, _ in source.test_list],
        "meta": source.meta | {"md5": md5(meta)},
    }


def write_svhn(root: Path, source: type, parts: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Write `.mat` files, with 10 for the digit 0 as in the real ones; returns torchvision's table of them."""
    root.mkdir(parents=True, exist_ok=True)
    table = dict(source.split_list)
    for part, labels in parts.items():
        url, name, _ = table[part]
        images = random_images(labels, 32, 32, 3).transpose(1, 2, 3, 0)
        scipy.io.savemat(root / name, {"X": images, "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)})
        table[part] = [url, name, md5(root / name)]
    return table


def write_imagenet(root: Path, classes: list[str], train: int, val: int) -> None:
    random = np.random.RandomState(0)
    for part, count in (("train", train), ("val", val)):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (40 + number, 50, 3) if number else (45, 45)
                Image.fromarray(random.randint(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}_{number}.JPEG")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "very"]


def write_tokenizer(folder: Path, words: list[str] = WORDS, special: bool = True) -> str:
    """Write a word-level tokenizer with BERT's special tokens, or without any; returns its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, "unk_token": "[UNK]"}
    if special:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        names["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        names["eos_token"] = "very"
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return str(folder)


def films(count: int) -> list[str]:
    """`count` texts of different lengths, half of them good."""
    return [" ".join(["very"] * (i % 7) + [("bad", "good")[i % 2], "film"]) for i in range(count)]


def write_hub(folder: Path, config: str, test: str, columns: list[str], classes: int) -> None:
    """Write a data set as a repository of the hub holds it: Parquet shards, named by the head of the README."""
    from datasets import ClassLabel, Dataset, Features, Value

    names = ClassLabel(names=[f"class {c}" for c in range(classes)])
    features = Features({**{column: Value("string") for column in columns}, "label": names})
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    (folder / config).mkdir(parents=True)
    for split, count in (("train", 40), (test, 8)):
        table = {**{column: films(count) for column in columns}, "label": [i % classes for i in range(count)]}
        Dataset.from_dict(table, features).to_parquet(str(folder / config / f"{split}-00000-of-00001.parquet"))
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
