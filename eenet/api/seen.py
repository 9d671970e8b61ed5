"""Whether a run's validation samples had a part in training its backbone, where that can be known."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eenet.errors import UserError
from eenet.runs import RunFolder, load_config, read_checkpoint

if TYPE_CHECKING:
    from eenet.api.opening import Run

SAME = ("name", "digest")
"""What two split records agree in if they are of the same splits."""


class Origin(NamedTuple):
    """A run that a backbone comes from.

    Attributes:
        folder: Of the run.
        config: Its configuration.
        checkpoint: What the backbone was taken from.
    """

    folder: Path
    config: dict[str, Any]
    checkpoint: Path


def check_unseen(run: "Run") -> None:
    """Refuse validation samples that one of the runs was trained on which the backbone comes from.

    Where the weights come from a file and validation was cut off training data, that is said: nobody can know.

    Raises:
        UserError: The backbone was trained on samples that are validated on now.
    """
    data, own = run.data, RunFolder(run.folder)
    if not hasattr(data, "sample_ids") or not own.config.is_file():  # trained in Python on what has no form in a file
        return
    config = load_config(own.config)
    passed = list(origins(config))
    if (problem := seen_before(data, passed)) is not None:
        raise UserError("data", data.name, problem)
    first = passed[-1].config if passed else config
    weights = find_key(first["model"], "pretrained")
    if (isinstance(weights, str) or (weights and data.name == "imagenet")) and "val" in data.cut:
        print(
            f"validation was cut off training data, on which the weights {weights!r} may have been trained; then these "
            "points are too optimistic: give a split `val` that they have not seen"
        )


def seen_before(data: Any, passed: Iterable[Origin]) -> str | None:
    """Which of the validation samples trained a backbone in one of its runs, `None` where none did."""
    for origin in passed:
        seen = set() if same_splits(data, origin) else data.sample_ids("val") & trained_on(origin.config)
        if seen:
            problem = f"{len(seen)} of its validation samples trained the backbone in {origin.folder}, {min(seen)} too"
            remedy = "points chosen on them promise nothing; give both runs the same data, seed and validation_fraction"
            return f"{problem}; {remedy}"
    return None


def origins(config: dict[str, Any]) -> Iterator[Origin]:
    """The runs that a configuration's backbone comes from, the latest first, as far as they are still there."""
    met = set()
    while path := (config["model"].get("init_args") or {}).get("backbone_checkpoint"):
        folder = Path(path) if Path(path).is_dir() else Path(path).parent.parent
        own = RunFolder(folder)
        if folder in met or not own.config.is_file():
            return
        met.add(folder)
        config = load_config(own.config)
        yield Origin(folder, config, own.last if Path(path).is_dir() else Path(path))


def same_splits(data: Any, origin: Origin) -> bool:
    """Whether a run has the same training samples, as its checkpoint says."""
    if not origin.checkpoint.is_file():
        return False
    record = read_checkpoint(origin.checkpoint, "model.backbone_checkpoint").get(type(data).__qualname__, {})
    own = data.split_record()
    return all(record.get(key) == own[key] for key in SAME)


def trained_on(config: dict[str, Any]) -> set[str]:
    """The training samples of a run, none where its data cannot be opened any more."""
    module, _, name = config["data"]["class_path"].rpartition(".")
    try:
        data = getattr(import_module(module), name)(**(config["data"].get("init_args") or {}))
        return data.sample_ids("train") if hasattr(data, "sample_ids") else set()
    except (ImportError, AttributeError, TypeError, UserError):
        return set()


def find_key(value: Any, key: str) -> Any:
    """The first value of a key at any depth of a configuration, `None` without one."""
    if not isinstance(value, dict):
        return None
    if key in value:
        return value[key]
    return next((found for inner in value.values() if (found := find_key(inner, key)) is not None), None)
