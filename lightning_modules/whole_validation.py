"""What ends every training: a validation of the whole split on the final weights."""

from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_modules.callbacks import LastCheckpoint
from lightning_modules.choosing import ChoosesPoints
from lightning_modules.heading import folder_of


class WholeValidation(Callback):
    """Ends a training with a whole validation on its final weights, unless the last one was that.

    Limits, `max_steps` and the interval of validations leave points that were chosen on a part, on older weights or
    never. Nothing is trained by it and no random number drawn; checkpoints of the same weights get the points.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate where that is needed and possible, and say which points are not chosen."""
        assert isinstance(pl_module, ChoosesPoints)
        if trainer.fast_dev_run or trainer.overfit_batches:  # type: ignore[attr-defined]
            return
        last, wanted = pl_module.validated_on, trainer.limit_val_batches or pl_module.chooses
        done = last is not None and last.weights == pl_module.network_digest()
        done = done and not pl_module.overwritten(dict(pl_module.named_buffers(recurse=False)))
        if not done and wanted and trainer.validate_loop._data_source.is_defined():
            rank_zero_info("the last validation was not of the whole split on the final weights; here is one that is")
            validate(trainer)
            state = trainer.strategy.lightning_module_state_dict()
            if trainer.is_global_zero:
                files = trainer.strategy.checkpoint_io
                for path in checkpoints(trainer):
                    saved = files.load_checkpoint(path, map_location="cpu", weights_only=True)
                    if pl_module.amend(saved, state):
                        files.save_checkpoint(saved, path)
            trainer.strategy.barrier()
        pl_module.warn()


def validate(trainer: Trainer) -> None:
    """Validate the whole split inside a training, as `Trainer.validate` does after one."""
    limit, loop = trainer.limit_val_batches, trainer.validate_loop
    trainer.limit_val_batches, loop.verbose = 1.0, False
    trainer.state.fn, trainer.validating = TrainerFn.VALIDATING, True
    try:
        with isolate_rng():
            loop.run()
    finally:
        trainer.limit_val_batches = limit
        trainer.state.fn, trainer.training = TrainerFn.FITTING, True


def checkpoints(trainer: Trainer) -> Iterator[str]:
    """The checkpoints that a training has written and kept."""
    written = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    paths = [path for c in written for path in (*c.best_k_models, c.best_model_path, c.last_model_path)]
    if any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks):
        paths.append(str(folder_of(trainer).last))
    return (path for path in dict.fromkeys(paths) if Path(path).is_file())
