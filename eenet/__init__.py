"""Early-exit networks in plain PyTorch: backbones cut into stages, inference modules, gates, policies and a runtime.

Each name of the library is imported when it is first used; `train` and `evaluate` alone need Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eenet.late import lazily

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
_named = lazily(__name__)


def __getattr__(name: str) -> Any:
    return import_module(f"eenet.{name}") if name in ("data", "lightning") else _named(name)
