"""Tokens of continued prompts for the exits of a decoder: each token is a sample, its features read once."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from datamodules.base import RunData, Split, check_at_least
from datamodules.features import load_whole
from datamodules.nlg import NLG
from datamodules.samplers import in_turn, training_batches, unrepeated
from datamodules.splits import digest
from eenet.backbones.huggingface import load_tokenizer
from eenet.decoding import DecoderNetwork, TokenFeatures
from eenet.decoding.judging import full_texts, split_batches
from eenet.decoding.observe import judged_tokens
from eenet.decoding.sequences import Sequences
from eenet.errors import UserError
from eenet.files import NameOrPath
from eenet.rank_zero import rank_zero_info

Origin = Literal["model", "reference"]


class Continuations(RunData):
    """Prompts and what follows them, split into `train`, `val` and `test`.

    Training and validation batches are tokens: the features that a network's exits read of them and the tokens that
    follow. All layers run once per text, when the batches are first asked for. Test batches are prompts.

    Args:
        task: Where prompts and references come from; its training part is cut into training and validation.
        tokenizer: Of the decoder: the model's folder, its name on the hub, or `smollm2`.
        continuation: What follows the prompts: what the full `model` generates greedily, which makes its own token the
            label, or the `reference`.
        val_size: Prompts held out of the task's training part for validation, the last ones.
        prompt_tokens: The most tokens of each training prompt that are trained on too. Where the exits are judged, only
            those of the continuation count that tokens in generation are: all but the first, which prompts predict.
        batch_size: Tokens per step.
        eval_batch_size: Tokens per batch wherever nothing is trained.
        text_batch_size: Texts at a time through the decoder.
        seed: Of the order of every epoch, and of the tokens of the prompts.
        download: Allow a hub name to be downloaded.

    Raises:
        UserError: Numbers below 1, an unknown continuation, or a task without training part, references or generation.

    Attributes:
        network: The network whose exits read the tokens; the command line sets it.
    """

    of_tokens = True
    network: DecoderNetwork

    def __init__(
        self,
        task: NLG,
        tokenizer: NameOrPath,
        continuation: Origin = "model",
        val_size: int = 40,
        prompt_tokens: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        text_batch_size: int = 8,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__()
        counts = {"val_size": val_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for field, value in {**counts, "text_batch_size": text_batch_size}.items():
            check_at_least(f"data.{field}", value, 1)
        check_at_least("data.prompt_tokens", prompt_tokens, 0)
        check_at_least("data.seed", seed, 0)
        if continuation not in get_args(Origin):
            raise UserError("data.continuation", continuation, f"must be one of {', '.join(get_args(Origin))}")
        if task.parts["train"] is None:
            raise UserError("data.task.train", None, "exits are trained: name a split or a file")
        if task.new_tokens < 2 or task.reference is None:
            raise UserError(
                "data.task.new_tokens", task.new_tokens, "exits need prompts that are continued, by 2 or more"
            )
        self.task, self.continuation, self.name = task, continuation, task.name
        self.tokenizer = load_tokenizer(tokenizer, download)
        self.num_classes = len(self.tokenizer)
        self.max_length = task.max_prompt_tokens + task.new_tokens
        self.val_size, self.prompt_tokens = val_size, prompt_tokens
        self.batch_size, self.eval_batch_size, self.text_batch_size = batch_size, eval_batch_size, text_batch_size
        self.seed = seed

    def prepare_data(self) -> None:
        """Read and tokenize everything."""
        _ = self._prompts

    def setup(self, stage: str) -> None:
        """Nothing to do; batches are made when they are asked for."""

    @cached_property
    def _prompts(self) -> dict[str, Sequences]:
        train = self.task.sequences("train", self.tokenizer)
        cut = len(train) - self.val_size
        if cut < 1:
            raise UserError("data.val_size", self.val_size, f"leaves no prompt to train on; there are {len(train)}")
        test = self.task.sequences("test", self.tokenizer)
        return {"train": rows(train, range(cut)), "val": rows(train, range(cut, len(train))), "test": test}

    def prompts(self, split: Split) -> Sequences:
        """Prompts and references of a split; the continuations are those of the references."""
        return self._prompts[split]

    def decode(self, tokens: list[int]) -> str:
        """Text of token numbers."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def continued(self, split: Split) -> Sequences:
        """Prompts of a split and what follows them, the stop token included where there is one."""
        given, end = self.prompts(split), list(self.prompts(split).stop[:1])
        if self.continuation == "reference":
            return replace(given, continuations=[tokens + end for tokens in given.continuations])
        rank_zero_info(f"the full model continues {len(given)} prompts of {self.name}, {split}")
        found = [tokens for batch in self._batches(given) for tokens in full_texts(self.network, given, batch)]
        return replace(given, continuations=found)

    def tokens(self, split: Split) -> "TokenTable":
        """Features and labels of a split's tokens."""
        continued = self.continued(split)
        count = self.prompt_tokens if split == "train" else 0
        parts = [read_table(self.network, continued, batch, count, self.seed) for batch in self._batches(continued)]
        table = TokenTable(*(torch.cat(column) for column in zip(*parts, strict=True)))
        rank_zero_info(f"features of {self.name}, {split}: {len(table):,} tokens in memory")
        return table

    @cached_property
    def _tables(self) -> dict[str, "TokenTable"]:
        return {}

    def table(self, split: Split) -> "TokenTable":
        """As `tokens`, made once."""
        if split not in self._tables:
            self._tables[split] = self.tokens(split)
        return self._tables[split]

    def loader(self, split: Split) -> DataLoader:
        """Batches of a split's tokens in their order."""
        table = self.table(split)
        return load_whole(table, sampler=in_turn(table, self.processes), batch_size=self.eval_batch_size)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of tokens; the order of an epoch is a function of the seed and the epoch."""
        table = self.table("train")
        order: DistributedSampler = DistributedSampler(table, *self.processes, shuffle=True, seed=self.seed)
        return load_whole(table, batch_sampler=training_batches(unrepeated(order), self.batch_size))

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation texts' tokens."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches of numbers of test prompts, `text_batch_size` at a time."""
        return DataLoader(range(len(self.prompts("test"))), batch_size=self.text_batch_size, collate_fn=list)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader:
        """As for testing."""
        return self.test_dataloader()

    def fingerprint(self, split: Split, augmented: bool = False) -> str:
        """Hex digest of prompts and references, and of what decides the continuations and tokens."""
        choice = f"{self.continuation} {self.prompt_tokens} {self.seed}"
        return digest([self.name.encode(), self.prompts(split).digest.encode(), choice.encode()])

    def split_record(self) -> dict[str, Any]:
        """The name, seed, sizes and digests of the splits, as plain JSON values."""
        return {
            "name": self.name,
            "seed": self.seed,
            "sizes": {split: len(prompts) for split, prompts in self._prompts.items()},
            "digest": {split: prompts.digest for split, prompts in self._prompts.items()},
        }

    def _batches(self, sequences: Sequences) -> Iterator[range]:
        return split_batches(len(sequences), self.text_batch_size)


class TokenTable(Dataset):
    """Tokens as samples; a batch is `TokenFeatures` and labels.

    Args:
        states: Hidden states at each early exit and after the last layer, `(tokens, exits, dim)`.
        steps: As in `TokenFeatures`.
        labels: The tokens that follow, `(tokens,)`.
        texts: The number of each token's text, `(tokens,)`.
    """

    def __init__(self, states: Tensor, steps: Tensor, labels: Tensor, texts: Tensor) -> None:
        self.states, self.steps, self.labels, self.texts = states, steps, labels, texts

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.states, self.steps, self.labels, self.texts))

    def __getitems__(self, rows: list[int]) -> tuple[TokenFeatures, Tensor]:
        """A batch."""
        *early, final = self.states[rows].unbind(1)
        return TokenFeatures(early, self.steps[rows], final), self.labels[rows]


def rows(sequences: Sequences, chosen: range) -> Sequences:
    """Some of the sequences."""
    part = slice(chosen.start, chosen.stop)
    return replace(
        sequences,
        prompts=sequences.prompts[part],
        references=sequences.references[part],
        continuations=sequences.continuations[part],
    )


@torch.no_grad()
def read_table(
    network: DecoderNetwork, sequences: Sequences, batch: range, prompt_tokens: int, seed: int
) -> TokenTable:
    """Features and labels of the judged tokens of some texts, on the CPU.

    Of the continuation, all but the first token: a prompt runs all layers.
    """
    inputs, (place, column, text, in_prompt) = judged_tokens(network.backbone, sequences, batch, prompt_tokens, seed)
    lengths = torch.tensor([len(sequences.tokens(number)) for number in batch], device=column.device)
    prompts = torch.tensor([len(sequences.prompts[number]) for number in batch], device=column.device)
    first = inputs["input_ids"].shape[1] - lengths[place] + prompts[place] - 1
    kept = in_prompt.bool() | (column != first)
    place, column, text = place[kept], column[kept], text[kept]
    found = network.read_tokens(inputs, place, column)
    states = torch.stack([*found.features, found.final], dim=1)
    labels = inputs["input_ids"][place, column + 1]
    return TokenTable(*(value.cpu() for value in (states, found.steps, labels, text)))
