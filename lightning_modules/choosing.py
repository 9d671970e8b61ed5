"""What a routine's operating points were chosen on, and which of them may be used."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.calibration import ChosenOn, OperatingPoint, objection, weights_digest
from eenet.calibration.chosen import warn_guessing, warn_nobody_leaves
from eenet.errors import UserError, command
from eenet.network import EarlyExitNetwork
from eenet.policies import SequentialGates
from eenet.rank_zero import rank_zero_warn
from eenet.reporting import Results
from eenet.runs import RunFolder
from lightning_modules.base import Module
from lightning_modules.heading import part

if TYPE_CHECKING:
    from lightning.pytorch import Callback

Row = dict[str, Any]
"""A row of results."""

NETWORK = "network."
"""What the names of the network's weights begin with in a routine's state."""

VALIDATED_ON = "validated_on"
"""Key of a checkpoint under which its last whole validation stands."""


class ChoosesPoints(Module):
    """Remembers the last validation of the whole split, which alone chooses operating points, and on which weights.

    Attributes:
        chooses: Whether the routine's own operating points are chosen on validation data.
        validated_on: What that validation was on.
    """

    chooses: ClassVar[bool] = False
    results: Results
    network: EarlyExitNetwork
    freeze_backbone: bool
    calibrated_points: dict[str, OperatingPoint]

    def __init__(self) -> None:
        super().__init__()
        self.validated_on: ChosenOn | None = None
        self._judged = ""
        self._fingerprint: tuple[Any, str] | None = None
        self._objections: dict[str, str] = {}
        self._remembered: dict[str, Tensor] = {}

    @abstractmethod
    def own_points(self) -> dict[str, OperatingPoint]:
        """The routine's own points."""

    @abstractmethod
    def operating_points(self) -> dict[str, OperatingPoint]:
        """The points that are tested, the principal one first."""

    @property
    def unmet(self) -> dict[str, str]:
        """Why budgets cannot be met, by the names of the routine's own points."""
        return {}

    @property
    def fitted(self) -> bool:
        """Whether what decides at the own points needs no fitting to validation, or is fitted."""
        return True

    @property
    def too_early(self) -> str | None:
        """Why validations choose nothing yet, though they see the whole split; `None` where they do."""
        return None

    def watched(self, rows: Results, records: dict[str, Tensor]) -> dict[str, Any]:
        """The figures that stopping may watch: the principal point's; before it is fitted, all nodes' mean accuracy."""
        if self.fitted and self.too_early is None:
            return rows["operating_points"][0]
        return {"accuracy": records["statistics"][..., 1].mean().item()}

    @property
    def untrained(self) -> str | None:
        """What training left undone in the network's own gates, `None` where it left nothing."""
        return None

    def fit_on(self, batches: Iterable[Any], split: str | None) -> bool:
        """Outside a training, fit what own points need and no whole validation has fitted on the present weights.

        Args:
            batches: `(inputs, labels)` of the validation split, on the routine's device.
            split: Its fingerprint.

        Returns:
            Whether anything was fitted.
        """
        return False

    def unseen_scores(self, samples: int) -> Tensor | None:
        """What the gate would say of so many validation samples had it not learned from them; `None` if it has not."""
        return None

    def configure_callbacks(self) -> "list[Callback]":
        """A training ends with a whole validation on its final weights."""
        from lightning_modules.whole_validation import WholeValidation

        return [WholeValidation()]

    def network_digest(self) -> str:
        """Digest of the network's weights as a checkpoint holds them, the same on all processes."""
        if self._trainer is None:
            return weights_digest(self.state_dict(), NETWORK)
        strategy = self.trainer.strategy
        return strategy.broadcast(weights_digest(strategy.lightning_module_state_dict(), NETWORK))

    @property
    def split(self) -> str | None:
        """Fingerprint of the trainer's validation split; `None` where the data have none."""
        data: Any = getattr(self._trainer, "datamodule", None)
        if not hasattr(data, "fingerprint"):
            return None
        if self._fingerprint is None or self._fingerprint[0] is not data:  # it reads the whole split: once per data
            self._fingerprint = (data, data.fingerprint("val"))
        return self._fingerprint[1]

    def on_validation_epoch_start(self) -> None:
        """Note which weights are judged; callbacks may exchange them before the epoch's end."""
        self._judged = self.network_digest()

    def trial(self) -> str | None:
        """Why the present validation chooses nothing; `None` where it is one of the whole split."""
        trainer = self.trainer
        if trainer.sanity_checking:
            return "a sanity check chooses nothing"
        for field in ("fast_dev_run", "overfit_batches"):
            if getattr(trainer, field):
                return f"a trial run (trainer.{field}) chooses nothing"
        return part(trainer, "val")

    def remember(self, samples: int) -> None:
        """The present validation was one of the whole split, of so many samples with those that fill up processes."""
        if self.trainer.world_size > 1:
            loaders = pytree.tree_leaves(self.trainer.val_dataloaders)
            samples = min(samples, sum(len(loader.dataset) for loader in loaders))
        self.validated_on = ChosenOn(self._judged, self.split, samples)
        self._remembered = {name: buffer.cpu().clone() for name, buffer in self.named_buffers(recurse=False)}

    def overwritten(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state has other thresholds than the last whole validation chose, as an average over steps has."""
        found = ((state.get(name, chosen), chosen) for name, chosen in self._remembered.items())
        return self.chooses and not all(torch.equal(held.cpu(), chosen) for held, chosen in found)

    @property
    def current(self) -> bool:
        """Whether the weights that are validated are those of the last whole validation."""
        return self.validated_on is not None and self.validated_on.weights == self._judged

    @contextmanager
    def kept(self, keep: bool) -> Iterator[None]:
        """Where asked for, put the routine's own buffers, such as thresholds, back to what they were before."""
        before = {name: buffer.clone() for name, buffer in self.named_buffers(recurse=False)} if keep else {}
        yield
        for name, buffer in before.items():
            getattr(self, name).copy_(buffer)

    def objection(self, point: OperatingPoint, weights: str, split: str | None) -> str | None:
        """Why a point is not to be used, `None` where it may be; see `eenet.calibration.objection`."""
        if point.gate is None and isinstance(point.policy, SequentialGates) and self.untrained:
            return self.untrained
        if point.chosen_on is None and not self.chooses:
            return None
        return objection(point.chosen_on, weights, split)

    def objections(self, points: Mapping[str, OperatingPoint], split: str | None) -> dict[str, str]:
        """Why points are not to be used with the present weights and data, by the names of those that are not.

        Args:
            points: Operating points by name.
            split: Fingerprint of the validation split, `None` where it is not known.
        """
        weights = self.network_digest()
        unmet = self.unmet
        found = {name: unmet.get(name) or self.objection(point, weights, split) for name, point in points.items()}
        return {name: why for name, why in found.items() if why is not None}

    def require_chosen(
        self,
        name: str,
        point: OperatingPoint,
        split: str | None,
        folder: str | Path,
        checkpoint: str | Path | None = None,
    ) -> None:
        """Refuse to use or ship a point that was not chosen for what is there.

        Args:
            name: Of the point.
            point: The point.
            split: Fingerprint of the validation split, `None` where it is not known.
            folder: Run folder, for the remedy.
            checkpoint: Whose weights are there, the last by default.

        Raises:
            UserError: It was chosen on other weights, on another split, or never.
        """
        why = self.objections({name: point}, split).get(name)
        if why is not None:
            raise UserError("point", name, f"is not chosen: {why}; {self.remedy(folder, checkpoint)}")

    def require_principal(self) -> None:
        """Raise a `UserError` where the principal point is to be used and is not chosen."""
        name, point = next(iter(self.operating_points().items()))
        self.require_chosen(name, point, self.split, self.trainer.default_root_dir, self._tested)

    def usable_points(self) -> dict[str, OperatingPoint]:
        """The points that are tested; the routine's own that are not chosen are left out, and why is remembered.

        Raises:
            UserError: A calibrated point was chosen on other weights or on another split.
        """
        points, split = self.operating_points(), self.split
        for name, point in self.calibrated_points.items():
            self.require_chosen(name, point, split, self.trainer.default_root_dir, self._tested)
        self._objections = self.objections(points, split)
        return {name: point for name, point in points.items() if name not in self._objections}

    def all_rows(self, rows: Mapping[str, Row]) -> list[Row]:
        """Rows of the points that are tested, in their order, and of those that `usable_points` left out."""
        return [rows.get(name) or self.not_chosen(name) for name in self.operating_points()]

    def mark(self, rows: list[Row], trial: str | None) -> list[Row]:
        """Rows of a validation with what each point was chosen on; without figures where it is not chosen.

        Args:
            rows: Of the routine's own points.
            trial: Why the validation chooses nothing.
        """
        own, split, unmet = self.own_points(), self.split, self.unmet
        found = {row["name"]: self.objection(own[row["name"]], self._judged, split) for row in rows}
        found = {name: trial if why and trial and self.chooses else why for name, why in found.items()}
        self._objections = {name: why for name in found if (why := unmet.get(name) or found[name])}
        return [
            self.not_chosen(row["name"]) if row["name"] in self._objections else chosen(row, own[row["name"]])
            for row in rows
        ]

    def not_chosen(self, name: str) -> Row:
        """The row of results of a point that is not chosen: its name and why, and no figures."""
        why = f"{self._objections[name]}; {self.remedy(self.trainer.default_root_dir, self._tested)}"
        return {"name": name, "chosen": False, "why": why}

    @property
    def _tested(self) -> str | Path | None:
        """The checkpoint that is judged, `None` in a training, which begins with another one's weights."""
        return None if self.trainer.state.fn == "fit" else self.trainer.ckpt_path

    def remedy(self, folder: str | Path, checkpoint: str | Path | None = None) -> str:
        """The command that chooses points for a run as it is, or for another checkpoint of it than the last."""
        other = checkpoint is not None and RunFolder(Path(folder)).tag(Path(checkpoint))
        which = ["--ckpt_path", checkpoint] if other else []
        return f"choose points with {command('calibrate', folder, *which, *self.wish.split())}"

    @property
    def wish(self) -> str:
        """What that command is asked for."""
        return "--budget 0.5"

    def warn(self) -> None:
        """Warn of points that are not chosen, of those at which nobody leaves early, and of a backbone that guesses."""
        for name, why in self.objections(self.operating_points(), self.split).items():
            rank_zero_warn(f"{name} is not chosen: {why}; {self.remedy(self.trainer.default_root_dir)}")
        rows = self.results.get("operating_points", [])
        warn_nobody_leaves({row["name"]: row["exit_fractions"] for row in rows if row["chosen"]})
        if self.freeze_backbone and self.results.get("exits"):
            warn_guessing(self.results["exits"][-1], self.network.backbone.num_classes)

    def amend(self, checkpoint: dict[str, Any], state: Mapping[str, Any]) -> bool:
        """Put the points into a checkpoint, if it holds the weights that they were chosen on.

        Everything else stays as it was, so that a training continues from it as it would have.

        Args:
            checkpoint: What its file holds.
            state: The routine's state.

        Returns:
            Whether it does.
        """
        if weights_digest(checkpoint["state_dict"], NETWORK) != weights_digest(state, NETWORK):
            return False
        checkpoint["state_dict"] = dict(state)
        ChoosesPoints.on_save_checkpoint(self, checkpoint)
        return True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the last whole validation, where the checkpoint holds what it chose."""
        last = None if self.overwritten(checkpoint["state_dict"]) else self.validated_on
        checkpoint[VALIDATED_ON] = None if last is None else last.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the last whole validation; checkpoints that were written before it was kept have none."""
        found = checkpoint.get(VALIDATED_ON)
        self.validated_on = None if found is None else ChosenOn(**found)


def chosen(row: Row, point: OperatingPoint) -> Row:
    """The row of results of a point that may be used, with what it was chosen on; `None` where nothing was chosen."""
    return {**row, "chosen": True, "chosen_on": None if point.chosen_on is None else point.chosen_on.to_dict()}
