"""`eenet fit|validate|test|predict`: LightningCLI with a run folder that is never overwritten by accident."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from datamodules import RunData
from eenet.calibration import Calibration
from eenet.cli.progress import ProgressLine
from eenet.errors import UserError
from eenet.parsing.given import find_given
from eenet.parsing.nulls import first_null
from eenet.parsing.refusals import Refusals
from eenet.reporting import write_text
from eenet.runs import RunFolder, Training, portable, read_checkpoint
from lightning_modules import ExitRoutine
from lightning_modules.callbacks import HoldFolder, LastCheckpoint, RandomState
from lightning_modules.heading import folder_of
from lightning_modules.quiet import drop_useless
from lightning_modules.tensorboard import TensorBoardReport, show_config


class FitConfig(SaveConfigCallback):
    """Saves the configuration of a training, not of a later test, in the run folder once the training begins."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: what is refused later must not leave its configuration."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and show it in TensorBoard too."""
        if not trainer.is_global_zero:
            return
        folder = folder_of(trainer)
        valid = self.parser.dump(self.config, skip_none=False, skip_validation=True)
        config = {**yaml.safe_load(valid), "ckpt_path": None}
        text = yaml.safe_dump(portable(config, folder.path), sort_keys=False)
        write_text(folder.config, text)
        show_config(trainer.logger, text)


class LightningParser(Refusals, LightningArgumentParser):
    """The parser of Lightning's commands."""

    def add_lightning_class_args(self, cls: Any, key: str, subclass_mode: bool = False, required: bool = True) -> Any:
        """Take routines and data for Lightning's, which they are once they are made."""
        if subclass_mode:
            return self.add_subclass_arguments(cls, key, fail_untyped=False, required=required)
        return super().add_lightning_class_args(cls, key, required=required)


_MADE: dict[str, tuple[LightningArgumentParser, list[str]]] = {}
"""Parsers of commands, and which of their arguments are the trainer's method's."""


class EenetCLI(LightningCLI):
    """The command line; model and data are given by `class_path` and `init_args`.

    The run folder is `trainer.default_root_dir`: TensorBoard events, `config.yaml`, `checkpoints/last.ckpt`,
    `results.json` and figures; see `eenet.runs`. `fit` refuses a folder that holds a run unless `--ckpt_path` says to
    continue: with `last`, or with `auto`, which begins where there is nothing to continue. `validate`, `test` and
    `predict` take its last checkpoint unless `--ckpt_path` is `best` or a file.
    """

    datamodule: Any
    model: ExitRoutine

    def __init__(
        self, args: list[str] | dict[str, Any] | None = None, run: bool = True, saved: dict[str, Any] | None = None
    ) -> None:
        drop_useless()
        self.training: Training | None = None
        self.saved = saved
        self.asked = args[0] if isinstance(args, list) and args else None
        with ExitStack() as self.held:
            self.execute(args, run)

    def execute(self, args: list[str] | dict[str, Any] | None, run: bool) -> None:
        """Parse, build and run; what a training holds is freed afterwards."""
        super().__init__(
            ExitRoutine,
            RunData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=FitConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=LightningParser,
            parser_kwargs={"prog": "eenet"},
            trainer_defaults={"default_root_dir": "runs/default"},
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What `test` and `predict` may be asked for beside the configuration."""
        parser.add_argument("--point", type=str | None, help="points of `eenet calibrate`, as budget-0.5; or `all`")
        parser.add_argument("--per_class", type=bool, default=False, help="report the accuracy of every class too")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for, whose options take their time to make, else all: Lightning's but `predict`."""
        every = LightningCLI.subcommands()
        del every["predict"]  # writes what `infer` does and needs no trainer
        return {self.asked: every[self.asked]} if self.asked in every else every

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The parser of a command, which is made once in a process."""
        if subcommand not in _MADE:
            made = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            _MADE[subcommand] = made, self._subcommand_method_arguments[subcommand]
        made, self._subcommand_method_arguments[subcommand] = _MADE[subcommand]
        return made

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Let the command's own parser do all of it, whose result the one around it would parse and check again."""
        own = getattr(self, "_subcommand_parsers", {}).get(self.asked)
        if own is None or self.asked is None:
            super().parse_arguments(parser, args)
        else:
            # who would print the configuration; what was refused before it
            vars(own).pop("parent_parser", None)
            vars(own).pop("print_config", None)
            self.config = Namespace(subcommand=self.asked, **{self.asked: own.parse_args(args[1:])})
        if null := first_null(self.config if own is None else self.config[self.asked]):
            given = find_given(args, null[0]) if isinstance(args, list) else None
            raise UserError(null[0], None, f"must be {null[1]}, not null{given.place if given else ''}")

    def _parse_ckpt_path(self) -> None:
        """Take no configuration from a checkpoint: those of eenet have none, and others' are refused."""

    def before_instantiate_classes(self) -> None:
        """Settle the checkpoint and guard the run folder before any work is done."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if "verbose" in config:
            config.verbose = False  # the routine prints its own table
        if self.subcommand in ("fit", "validate") and config.point is not None:
            raise UserError("point", config.point, "operating points are used by `eenet test`")
        check_counts(config.trainer)
        folder, trial = RunFolder(Path(config.trainer.default_root_dir)), bool(config.trainer.fast_dev_run)
        if self.subcommand == "fit":
            if not trial and rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # its launcher's others share it
                self.training = self.held.enter_context(folder.training())
            checkpoint = starting_point(folder, config.ckpt_path, trial)
        elif trial and config.ckpt_path is None:
            checkpoint = None
        else:
            checkpoint = folder.checkpoint(config.ckpt_path)
        if checkpoint is not None:
            self.saved = read_checkpoint(checkpoint, "ckpt_path")
        config.ckpt_path = None if checkpoint is None else str(checkpoint)

    def choose_points(self) -> None:
        """Give the routine the points that are asked for; a `UserError` where the checkpoint has none such."""
        config = self.config[self.subcommand]
        self.model.per_class = config.per_class
        if config.point is None:
            return
        folder, checkpoint = Path(config.trainer.default_root_dir), Path(config.ckpt_path)
        calibration = Calibration.of(folder, checkpoint, config.point, self.model.network)
        self.model.calibration = calibration
        self.model.calibrated_points = calibration.choose(config.point)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that logs to TensorBoard in the run folder and keeps the last epoch's checkpoint."""
        config = self._get(self.config_init, "trainer")
        callbacks: list[Any] = [RandomState(), TensorBoardReport()]
        if not config.fast_dev_run:
            callbacks.append(HoldFolder(self.training))
            if config.enable_checkpointing is not False:
                callbacks.append(LastCheckpoint())
        if config.enable_progress_bar is not False:
            callbacks.append(ProgressLine())
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        if config.enable_model_summary is None:  # of modules in a tree that says nothing of exits; `inspect` does
            kwargs["enable_model_summary"] = False
        if config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(config.default_root_dir, name="", version="")
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, DDPStrategy):
            # gates, warmed-up inference modules and alternating phases leave parameters without gradients
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        return trainer

    def after_instantiate_classes(self) -> None:
        """Check that data and backbone fit each other, and take the operating points that are asked for."""
        self.model.meet(self.datamodule, self.saved)
        if self.subcommand is not None:
            self.choose_points()


def check_counts(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a trainer by which Lightning divides, or that it takes for none, without a word.

    Raises:
        UserError: A count or an interval is not above 0, or the norm of gradients below 0.
    """
    for name in ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch", "gradient_clip_val"):
        value, clips = settings.get(name), name == "gradient_clip_val"
        if isinstance(value, int | float) and not (value >= 0 if clips else value > 0):
            raise UserError(f"trainer.{name}", value, "must be at least 0" if clips else "must be above 0")


def starting_point(folder: RunFolder, name: str | None, trial: bool) -> Path | None:
    """The checkpoint from which `fit` goes on, `None` for a new run.

    Args:
        folder: The run's.
        name: As for `RunFolder.checkpoint`, or `auto`: the last one where the folder has it.
        trial: Whether nothing is written.

    Raises:
        UserError: The folder holds a run that would be overwritten, or there is no such checkpoint.
    """
    found = None
    if name == "last" and not folder.last.is_file():
        raise UserError("ckpt_path", "last", f"there is no {folder.last}; `--ckpt_path auto` begins a new run instead")
    if name is not None and (name != "auto" or folder.last.is_file()):
        found = folder.checkpoint("last" if name == "auto" else name)
    own = found is not None and found.absolute().parent.resolve().is_relative_to(folder.path.resolve())
    if folder.used and not own and not trial:
        remedy = "holds a run already; continue it with `--ckpt_path last` or choose another folder"
        raise UserError("trainer.default_root_dir", str(folder.path), remedy)
    return found
