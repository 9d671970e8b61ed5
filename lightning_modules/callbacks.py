"""What trainings get: a held folder, a last checkpoint, a random state that resumes, a warm-up that nothing judges."""

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.io.torch_io import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from eenet.errors import UserError
from eenet.runs import Training, digest_note, write_checkpoint
from lightning_modules.heading import folder_of


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them: the one before is kept until the new one is whole.

    Lightning's own writes to `$TMPDIR` and moves, which copies where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write it, and its digest beside it."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        write_checkpoint(checkpoint, Path(path))

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove it and its digest."""
        super().remove_checkpoint(path)
        digest_note(Path(path)).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Writes `checkpoints/last.ckpt` in the run folder after every epoch, whole or not at all.

    It is no `ModelCheckpoint`: one that a module gives replaces all that the trainer was given.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        trainer.save_checkpoint(folder_of(trainer).last, weights_only=False)


class HoldFolder(Callback):
    """Keeps checkpoints whole and in the run folder whatever the logger, and holds the folder while a run trains in it.

    A folder that holds a run is refused, unless the training continues one.

    Args:
        training: Of the folder, where it is held already.
    """

    def __init__(self, training: Training | None = None) -> None:
        self.training, self.held = training, ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where checkpoints go, and take the folder."""
        if stage != "fit":
            return
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        folder = folder_of(trainer)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder.checkpoints.absolute())
        if self.training is None and trainer.is_global_zero:
            self.training = self.held.enter_context(folder.training())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to overwrite a run; from here on what is written stays."""
        folder = folder_of(trainer)
        if folder.used and trainer.global_step == 0:
            remedy = "holds a run already; continue it with ckpt_path, or choose another folder"
            raise UserError("trainer.default_root_dir", str(folder.path), remedy)
        if self.training is not None:
            self.training.begin()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the training reached its end, which one that a signal or an error ended does not."""
        if trainer.is_global_zero:
            if self.training is not None:
                self.training.begin()  # also where there was nothing left to train
            folder_of(trainer).finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the folder."""
        self._free()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free the folder."""
        self._free()

    def _free(self) -> None:
        self.held.close()
        self.training = None


class RandomState(Callback):
    """Keeps Python's, NumPy's and torch's random state in the checkpoint and restores it when a run resumes."""

    def state_dict(self) -> dict[str, Any]:
        """The states, as plain values and tensors."""
        kind, keys, *rest = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the states back."""
        version, internal, gauss = state_dict["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = state_dict["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state_dict["torch"])
        if len(state_dict["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(state_dict["cuda"])


class WarmUp(Callback):
    """Keeps callbacks that monitor routed figures out of a routine's warm-up, whose gates are untrained.

    They are taken off the trainer before its first batch and put back at the first validation after the warm-up, so
    that `EarlyStopping` counts none of its epochs and `ModelCheckpoint` keeps none of its weights.
    """

    def __init__(self) -> None:
        self.all: list[Callback] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Let them rest. The list is replaced, since Lightning is going through it."""
        if pl_module.warming_up:
            self.all = trainer.callbacks  # type: ignore[attr-defined]
            watching = [call for call in self.all if not pl_module.is_routed(getattr(call, "monitor", None))]
            trainer.callbacks = watching  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Wake them at the first figures of trained gates."""
        if not pl_module.warming_up:
            self._wake(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the trainer as it was."""
        self._wake(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the trainer as it was."""
        self._wake(trainer)

    def _wake(self, trainer: Trainer) -> None:
        if self.all is not None:
            trainer.callbacks, self.all = self.all, None  # type: ignore[attr-defined]
