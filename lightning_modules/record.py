"""A run that is trained in Python leaves the configuration from which `eenet calibrate RUN` opens it."""

import warnings
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from eenet.described import describe
from eenet.errors import UserError
from eenet.reporting import write_text
from eenet.runs import portable
from lightning_modules.heading import folder_of, training_record


class SaveConfig(Callback):
    """Writes `config.yaml` when a training begins, where no command line does."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, or warn that the objects have no form in a file."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not trainer.is_global_zero or any(isinstance(callback, SaveConfigCallback) for callback in callbacks):
            return
        folder = folder_of(trainer)
        try:
            config = run_config(trainer, pl_module)
        except UserError as error:
            warnings.warn(f"no {folder.config}, so that `eenet` cannot open this run: {error}", stacklevel=2)
            return
        write_text(folder.config, yaml.safe_dump(portable(config, folder.path), sort_keys=False))


def run_config(trainer: Any, routine: LightningModule) -> dict[str, Any]:
    """A run's configuration, from its objects; a `UserError` where one of them has no form in a configuration."""
    if trainer.datamodule is None:
        raise UserError("data", "DataLoader", "only a data module has a form in a file")
    trained = training_record(trainer)
    return {
        **({} if trained["seed"] is None else {"seed_everything": trained["seed"]}),
        "trainer": {
            name.removeprefix("trainer."): value
            for name, value in trained["trainer"].items()
            if name != "trainer.callbacks"  # whose arguments are not known
        },
        "model": describe(routine),
        "data": describe(trainer.datamodule),
    }
