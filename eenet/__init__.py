"""Early-exit networks in plain PyTorch: backbones cut into stages, inference modules, gates, policies and a runtime.

Each name of the library is imported when it is first used; `train` and `evaluate` alone need Lightning.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eenet.api.benchmarking import bench
    from eenet.api.calibrating import calibrate
    from eenet.api.clocks import time_parts
    from eenet.api.comparing import compare
    from eenet.api.exporting import export
    from eenet.api.generating import generate
    from eenet.api.harness import harness
    from eenet.api.inferring import infer, predict
    from eenet.api.opening import Run, open_run
    from eenet.api.serving import serve
    from eenet.attaching import attach
    from eenet.errors import UserError
    from eenet.network import EarlyExitNetwork
    from eenet.runtime.load import load
    from lightning_modules.training import evaluate, train

_HOMES = {
    "EarlyExitNetwork": "eenet.network",
    "Run": "eenet.api.opening",
    "UserError": "eenet.errors",
    "attach": "eenet.attaching",
    "bench": "eenet.api.benchmarking",
    "calibrate": "eenet.api.calibrating",
    "compare": "eenet.api.comparing",
    "evaluate": "lightning_modules.training",
    "export": "eenet.api.exporting",
    "generate": "eenet.api.generating",
    "harness": "eenet.api.harness",
    "infer": "eenet.api.inferring",
    "load": "eenet.runtime.load",
    "open_run": "eenet.api.opening",
    "predict": "eenet.api.inferring",
    "serve": "eenet.api.serving",
    "time_parts": "eenet.api.clocks",
    "train": "lightning_modules.training",
}

__version__ = "0.3.0"
__all__ = [
    "EarlyExitNetwork",
    "Run",
    "UserError",
    "attach",
    "bench",
    "calibrate",
    "compare",
    "evaluate",
    "export",
    "generate",
    "harness",
    "infer",
    "load",
    "open_run",
    "predict",
    "serve",
    "time_parts",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("data", "lightning"):
        return import_module(f"eenet.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name].startswith(("eenet.api", "lightning_modules")):
        for line in import_module("eenet.beside").settle():
            warnings.warn(line, stacklevel=2)
    return getattr(import_module(_HOMES[name]), name)
