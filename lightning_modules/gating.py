"""Training gates that say for each token which of a decoder's layers run."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.backbones import Gpt
from eenet.backbones.tuned import model_digest
from eenet.decoding import Executor
from eenet.decoding.gating import GatedExecutor, LayerGates, Reads, gated_loss, save_gates
from eenet.decoding.sequences import TextBatch
from eenet.described import describe
from eenet.errors import UserError
from lightning_modules.schedules import OptimizerCallable
from lightning_modules.texts import TextRoutine

FOLDER = "gates"
"""The folder, in a run's, of the gates."""


class GateTraining(TextRoutine):
    """The per-token controllers of arXiv 2410.20022: hard Gumbel gates with a price on the layers that run.

    The loss is the cross-entropy of what follows the prompts plus `price` times the share of inner layers that run. The
    decoder is frozen; take a run of `PlanTuning` for its `pretrained` to gate a tuned one. Train `reads: ones` beside
    `reads: hidden`: it is the same gate without anything to read, and what the other gains on it at equal layers is
    what hidden states tell.

    When the training ends, the run folder gets `gates`, which `eenet layers --gates` judges.

    Args:
        backbone: The decoder, with its language-model head (`task: tokens`) and pretrained weights.
        reads: What the gates read: the `hidden` state, or `ones`.
        price: Nats per token that running all inner layers costs.
        temperature: Of the Gumbel samples.
        start: The logit that the gates start with; positive lets layers run.
        optimizer: Makes the optimizer of the gates; its learning rate is the schedule's peak.
        warmup: Share of all steps over which the learning rate rises to its peak.

    Raises:
        UserError: A decoder without pretrained weights or of too few layers, or values out of range.
    """

    method = "layer_gates"

    def __init__(
        self,
        backbone: Gpt,
        reads: Reads = "hidden",
        price: float = 1.0,
        temperature: float = 1.0,
        start: float = 2.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0),
        warmup: float = 0.1,
    ) -> None:
        super().__init__(backbone, optimizer, warmup, frozen=True)
        base = describe(backbone)["init_args"].get("pretrained")
        if base is None:
            raise UserError("backbone.pretrained", None, "names the model whose layers are gated")
        if price < 0:
            raise UserError("model.price", price, "must be at least 0")
        if temperature <= 0:
            raise UserError("model.temperature", temperature, "must be above 0")
        self.base, self.base_digest = base, model_digest(backbone.model)
        self.price, self.temperature = price, temperature
        self.gates = LayerGates(backbone.feature_dims[0], backbone.num_stages, reads, start)
        self._shares: list[Tensor] = []

    def cross_entropies(self, texts: TextBatch) -> dict[str, Tensor]:
        """Cross-entropies of what follows the prompts, the gates deciding without chance."""
        found = gated_loss(self.gpt, self.gates, texts)
        self._shares.append(found.share)
        return {"gates": found.losses}

    @cached_property
    def _executor(self) -> GatedExecutor:
        return GatedExecutor(self.gpt, self.gates, self.network.decoder_costs)

    def executors(self) -> Mapping[str, Executor]:
        """What generates with the gates."""
        return {"gates": self._executor}

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Mean cross-entropy under sampled gates, and the price of what they let run."""
        found = gated_loss(self.gpt, self.gates, batch, self.temperature)
        loss = found.losses.mean() + self.price * found.share
        self.log_losses("gates", batch_idx, loss)
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log the loss, and `val/layers`, the layers per token as a share of all."""
        share = self.trainer.strategy.reduce(torch.stack(self._shares).mean(), reduce_op="mean")
        self._shares = []
        inner, layers = len(self.gates.inner), self.gates.num_layers
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self.log("val/layers", (share * inner + layers - inner) / layers, prog_bar=True, rank_zero_only=True)

    def on_train_end(self) -> None:
        """Write the gates."""
        super().on_train_end()
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_gates(self.gates, self.base, self.base_digest, Path(self.run_folder) / FOLDER, {"price": self.price})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a `UserError` for gates of a decoder with other weights."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["base_digest"] != self.base_digest:
            raise UserError(
                "backbone.pretrained", self.base, "has other weights than those that the gates were trained on"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose layers are gated."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["base_digest"] = self.base_digest
