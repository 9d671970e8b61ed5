"""What trainings of a decoder on whole texts share: losses by setting, and a test that generates with each."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eenet.backbones import Gpt
from eenet.decoding import DecoderNetwork, Executor
from eenet.decoding.judging import Row, follow_full, full_rows, generated_rows, summarise_rows
from eenet.decoding.sequences import TextBatch
from eenet.gates import ConfidenceGate
from eenet.policies import FixedExit, Policy
from lightning_modules.decoder import COLUMNS, DecoderRoutine
from lightning_modules.heading import heading
from lightning_modules.schedules import OptimizerCallable, one_cycle


class TextRoutine(DecoderRoutine):
    """Trains a decoder, or what steers it, on prompts with what follows them.

    Checkpoints hold what is trained alone. A test generates with the full model and with each setting, and writes what
    `DecoderRoutine` writes.

    Args:
        backbone: The decoder, with its language-model head (`task: tokens`).
        optimizer: Makes the optimizer; its learning rate is the schedule's peak.
        warmup: Share of all steps over which the learning rate rises to its peak.
        frozen: Keep the decoder's weights as they are.
    """

    reads = "ContinuedTexts"

    def __init__(self, backbone: Gpt, optimizer: OptimizerCallable, warmup: float, frozen: bool = False) -> None:
        super().__init__(DecoderNetwork(backbone, exits=[], gate=ConfidenceGate), frozen)
        self.optimizer, self.warmup = optimizer, warmup
        _ = self.network.decoder_costs  # of the layers as they are, without what may be put beside them
        self._sums: dict[str, list[Tensor]] = {}

    @property
    def gpt(self) -> Gpt:
        """The decoder."""
        return self.network.backbone

    @abstractmethod
    def cross_entropies(self, texts: TextBatch) -> dict[str, Tensor]:
        """Cross-entropies of what follows the prompts, `(tokens,)`, by setting."""

    @abstractmethod
    def executors(self) -> Mapping[str, Executor]:
        """What generates with each setting."""

    def merged(self) -> AbstractContextManager[None]:
        """Where the model generates as it will be used."""
        return nullcontext()

    def policies(self) -> dict[str, Policy]:
        """The full model; plans and gates are no policies of exits."""
        return {"full": FixedExit()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Nothing to check: a batch is texts."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing to check: a batch is texts."""

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Losses of every setting on a batch."""
        for name, losses in self.cross_entropies(batch).items():
            self._sums.setdefault(name, []).append(torch.stack([losses.sum(), losses.new_tensor(len(losses))]))

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss of every setting, in nats per token, and their mean, `val/loss`."""
        add = partial(self.trainer.strategy.reduce, reduce_op="sum")
        totals = {name: add(torch.stack(sums).sum(0)) for name, sums in self._sums.items()}
        self._sums = {}
        means = {name: (total[0] / total[1]).item() for name, total in totals.items()}
        if self.trainer.sanity_checking:
            return
        self.log_dict({f"val/loss/{name}": mean for name, mean in means.items()}, rank_zero_only=True)
        self.log("val/loss", sum(means.values()) / len(means), prog_bar=True, rank_zero_only=True)
        if self.trial() is None:
            self.remember(int(next(iter(totals.values()))[1]))

    def on_test_start(self) -> None:
        """Make room for the texts of every setting."""
        self._rows: dict[str, list[Row]] = {name: [] for name in ("full", *self.executors())}

    @torch.no_grad()
    def test_step(self, batch: list[int], batch_idx: int) -> None:
        """Generate after some test prompts with the full model and with every setting."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        sequences, decode = data.prompts("test"), data.decode
        with self.merged():
            full = full_rows(self.network, sequences, batch, decode)
            self._rows["full"] += full
            for name, executor in self.executors().items():
                rows = generated_rows(executor, sequences, batch, decode)
                self._rows[name] += follow_full(executor, sequences, batch, rows, full)

    def on_test_epoch_end(self) -> None:
        """Log the figures, write `results.json` and print the table."""
        full, layers = self._rows["full"], self.gpt.num_stages
        points = {name: summarise_rows(rows, full, layers) for name, rows in self._rows.items()}
        figures = {f"test/{key}/{name}": row[key] for name, row in points.items() for key in COLUMNS}
        self.log_dict({key: figure for key, figure in figures.items() if figure is not None})
        self._report({**heading(self, "test"), "prompts": len(full), "points": points, "texts": self._rows})

    def configure_optimizers(self) -> Any:
        """The optimizer of what is trained, under a one-cycle schedule over all steps."""
        optimizer = self.optimizer([weight for weight in self.parameters() if weight.requires_grad])
        schedule = one_cycle(optimizer, self.warmup, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained_names(self) -> set[str]:
        """Names of the weights that are trained, in the routine's state."""
        return {name for name, weight in self.named_parameters() if weight.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep of the weights those that are trained."""
        super().on_save_checkpoint(checkpoint)
        names = self.trained_names()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in names}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the trained weights of a checkpoint; a `KeyError` where it holds more or fewer."""
        if differing := sorted(self.trained_names() ^ set(state_dict)):
            raise KeyError(f"{differing[0]} is trained in one of checkpoint and configuration alone")
        return super().load_state_dict(state_dict, strict=False, assign=assign)
