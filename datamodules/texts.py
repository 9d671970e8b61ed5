"""Prompts with what follows them, as texts: what a decoder's own weights are tuned on."""

from functools import partial
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from datamodules.base import Split
from datamodules.continuations import Continuations, Origin
from datamodules.nlg import NLG
from datamodules.samplers import in_turn, training_batches, unrepeated
from eenet.decoding.sequences import Sequences
from eenet.decoding.tuning import text_batch
from eenet.files import NameOrPath


class ContinuedTexts(Continuations):
    """The prompts of `Continuations`, each text a sample: training and validation batches are `TextBatch`.

    Args:
        task: Where prompts and references come from; its training part is cut into training and validation.
        tokenizer: Of the decoder: the model's folder, its name on the hub, or `smollm2`.
        continuation: What follows the prompts: the `reference`, or what the untuned `model` generates greedily.
        val_size: Prompts held out of the task's training part for validation, the last ones.
        batch_size: Texts per training step.
        text_batch_size: Texts at a time wherever nothing is trained.
        seed: Of the order of every epoch.
        download: Allow a hub name to be downloaded.

    Raises:
        UserError: As `Continuations`.
    """

    of_texts = True

    def __init__(
        self,
        task: NLG,
        tokenizer: NameOrPath,
        continuation: Origin = "reference",
        val_size: int = 40,
        batch_size: int = 4,
        text_batch_size: int = 8,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__(
            task,
            tokenizer,
            continuation,
            val_size,
            batch_size=batch_size,
            text_batch_size=text_batch_size,
            seed=seed,
            download=download,
        )
        self._continued: dict[Split, Sequences] = {}

    def texts(self, split: Split) -> Sequences:
        """As `continued`, made once."""
        if split not in self._continued:
            self._continued[split] = self.continued(split)
        return self._continued[split]

    def loader(self, split: Split) -> DataLoader:
        """Batches of a split's texts in their order."""
        texts = self.texts(split)
        return self._loader(texts, sampler=in_turn(texts, self.processes), batch_size=self.text_batch_size)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of texts; the order of an epoch is a function of the seed and the epoch."""
        texts = self.texts("train")
        order: DistributedSampler = DistributedSampler(texts, *self.processes, shuffle=True, seed=self.seed)  # type: ignore[arg-type]
        return self._loader(texts, batch_sampler=training_batches(unrepeated(order), self.batch_size))

    def _loader(self, texts: Sequences, **options: Any) -> DataLoader:
        return DataLoader(range(len(texts)), collate_fn=partial(text_batch, texts), **options)  # type: ignore[arg-type]
