"""What a run's network takes by the clock, kept in its folder beside the calibration."""

from __future__ import annotations

import json
from pathlib import Path

from eenet.errors import UserError
from eenet.files import sha256, whole
from eenet.profile import Seconds
from eenet.reading import read_json

PROFILE = "profile.json"
"""File of a run folder that `eenet bench --profile` writes; see `eenet.runs.RunFolder.file`."""

SCHEMA = 1


def keep(path: Path, checkpoint: Path, found: Seconds) -> None:
    """Add a profile to a run's file, in place of one of the same conditions; those of another checkpoint go."""
    try:
        old = _read(path, checkpoint)
    except UserError:
        old = []
    profiles = [profile.to_dict() for profile in (*(one for one in old if one.key != found.key), found)]
    content = {"schema": SCHEMA, "checkpoint": sha256(checkpoint), "profiles": profiles}
    with whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2), encoding="utf-8")


def find(path: Path, checkpoint: Path, runtime: str, threads: int, batch_size: int, device: str) -> Seconds:
    """The profile of a run for these conditions; a `UserError` that says what `eenet bench` has to be told."""
    for profile in _read(path, checkpoint):
        if profile.key == (device, runtime, threads, batch_size):
            return profile
    raise UserError("budget-ms", f"{runtime}, batch {batch_size}, {threads} threads", f"was not measured; {_remedy()}")


def _read(path: Path, checkpoint: Path) -> list[Seconds]:
    try:
        values = read_json(path)
        if values["schema"] != SCHEMA or values["checkpoint"] != sha256(checkpoint):
            raise UserError("budget-ms", str(path), f"is of another checkpoint or version; {_remedy()}")
        return [Seconds.from_dict(profile) for profile in values["profiles"]]
    except FileNotFoundError as error:
        raise UserError("budget-ms", str(path), f"there is no such file; {_remedy()}") from error
    except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError("budget-ms", str(path), f"is damaged ({type(error).__name__}); {_remedy()}") from error


def _remedy() -> str:
    return "measure with `eenet bench RUN --profile` and the same --batch-size, --threads and --runtime"
