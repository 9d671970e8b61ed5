"""A run is a folder with its configuration, checkpoints, calibration and results, from the command line and Python.

`RunFolder` says what lies where and which checkpoint is meant, and holds the folder while a run trains in it;
`portable` and `load_config` keep a configuration usable when the folder is moved; `identify` says what tells a
run from others; `check_trust` keeps a stranger's configuration from running code.
"""

from eenet.runs.folder import IDENTITY, RunFolder, Training, digest_note, read_checkpoint, relocate, write_checkpoint
from eenet.runs.identity import flatten, identify, training_identity
from eenet.runs.paths import load_config, portable
from eenet.runs.trust import check_trust

__all__ = [
    "IDENTITY",
    "RunFolder",
    "Training",
    "check_trust",
    "digest_note",
    "flatten",
    "identify",
    "load_config",
    "portable",
    "read_checkpoint",
    "relocate",
    "training_identity",
    "write_checkpoint",
]
