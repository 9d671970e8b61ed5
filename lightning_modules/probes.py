"""Train the probes that say whether a plan's layers are enough for a token."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from eenet.decoding.probes import TokenProbes

BATCH = 128
"""Tokens per step."""


class ProbeTraining(LightningModule):
    """Binary cross-entropy of every plan's probe; batches are hidden states and targets.

    Args:
        probes: The probes.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
    """

    def __init__(self, probes: TokenProbes, learning_rate: float = 3e-3, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.probes, self.learning_rate, self.weight_decay = probes, learning_rate, weight_decay

    def forward(self, states: Tensor) -> Tensor:
        """Logits `(tokens, plans - 1)` for hidden states `(tokens, plans, dim)`."""
        return self.probes(states)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean over tokens and plans; targets are bool `(tokens, plans)`, of which the last is not learned."""
        states, sufficient = batch
        return F.binary_cross_entropy_with_logits(self(states), sufficient[:, :-1].float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss on tokens of texts that are not trained on, which decides when to stop."""
        self.log("val/loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at a constant rate."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


def train_probes(
    probes: TokenProbes, states: Tensor, sufficient: Tensor, texts: Tensor, seed: int, max_epochs: int = 60
) -> dict[str, float]:
    """Train probes until the loss on held-out texts has not fallen for five epochs, and keep the best weights.

    Args:
        probes: Trained in place.
        states: What each plan's probe reads, `(tokens, plans, dim)`.
        sufficient: Targets, bool `(tokens, plans)`.
        texts: The text of every token, `(tokens,)`; a fifth of the texts is held out.
        seed: Of the held-out texts, the order of the batches and nothing else.
        max_epochs: The most passes over the tokens.

    Returns:
        `val_loss`, the best, and `epochs`, how many were run.
    """
    generator = torch.Generator().manual_seed(seed)
    names = texts.unique()
    held = torch.isin(texts, names[torch.randperm(len(names), generator=generator)[: max(1, len(names) // 5)]])
    parts = [TensorDataset(states[keep], sufficient[keep]) for keep in (~held, held)]
    best = BestWeights(patience=5)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        callbacks=[best],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    train = DataLoader(parts[0], batch_size=BATCH, shuffle=True, generator=generator)
    trainer.fit(ProbeTraining(probes), train, DataLoader(parts[1], batch_size=4 * BATCH))
    probes.load_state_dict(best.weights)
    return {"val_loss": best.loss, "epochs": trainer.current_epoch}


class BestWeights(Callback):
    """Keeps the probes' weights of the least validation loss, and ends the training when it no longer falls.

    Args:
        patience: Epochs without a better loss before the end.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.loss, self.waited = patience, float("inf"), 0
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch's loss with the best."""
        assert isinstance(pl_module, ProbeTraining)
        loss = float(trainer.callback_metrics["val/loss"])
        self.waited += 1
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.weights = {name: value.clone() for name, value in pl_module.probes.state_dict().items()}
        trainer.should_stop = self.waited >= self.patience
