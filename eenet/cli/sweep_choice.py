"""`eenet sweep --choose`: which point of a grid is best on validation, before anything is tested."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from eenet.errors import UserError
from eenet.reading import read_yaml

LOWER = ("nll", "ece", "macs_fraction", "loss")
"""Figures of which less is better."""


class Option(NamedTuple):
    """One point of a grid.

    Attributes:
        values: What is varied, by field, without the seed.
        found: The figure of each seed.
    """

    values: Mapping[str, Any]
    found: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.found)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 where there is one."""
        return stdev(self.found) if len(self.found) > 1 else 0.0


def check_figure(figure: str, configs: Iterable[str], varied: Mapping[str, list[Any]]) -> None:
    """Raise a `UserError` for what is no figure of a validation, or is written nowhere, before anything is trained."""
    if not figure.startswith("val/"):
        raise UserError("choose", figure, "must be a figure of the validation, such as val/accuracy or val/nll/exit_*")
    contents = [read_yaml(Path(config)) for config in configs]
    loggers = [part["logger"] for content in contents if "logger" in (part := content.get("trainer") or {})]
    if False in varied.get("trainer.logger", loggers[-1:]):
        raise UserError("choose", figure, "is read from TensorBoard's files, which trainer.logger false does not write")


def lower_is_better(figure: str) -> bool:
    """Whether less of a figure is better.

    Example:
        >>> lower_is_better("val/nll/exit_*"), lower_is_better("val/accuracy")
        (True, False)
    """
    return any(part in LOWER for part in figure.split("/"))


def choose(options: Iterable[Option], figure: str) -> Option:
    """The first of those that are within the best one's spread: what is shipped stays unless another is clearly better.

    Example:
        >>> tried = [Option({"lr": lr}, found) for lr, found in ((1, (0.80, 0.82)), (2, (0.81, 0.83)), (3, (0.7, 0.7)))]
        >>> choose(tried, "val/accuracy").values, choose(tried[1:], "val/accuracy").values
        ({'lr': 1}, {'lr': 2})
    """
    tried, sign = list(options), -1 if lower_is_better(figure) else 1
    best = max(tried, key=lambda option: sign * option.mean)
    return next(option for option in tried if sign * (best.mean - option.mean) <= best.spread)


def validated(folder: Path, figure: str) -> float:
    """A figure of the last validation that a run's folder has in its TensorBoard files.

    Args:
        folder: Run folder.
        figure: Its name; with `*` the mean of all that match.

    Raises:
        UserError: There is none.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last: dict[str, float] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(path), size_guidance={"scalars": 1})
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if fnmatchcase(tag, figure)]
        last |= {tag: events.Scalars(tag)[-1].value for tag in tags}
    if not last:
        raise UserError("choose", figure, f"is no figure of the validations in {folder}")
    return mean(last.values())
