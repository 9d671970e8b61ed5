"""Routed inference as it is deployed: run only what each sample needs; the router itself is `eenet.routing`.

Here live the module that deploys a routed network, the one that runs an exported folder, and the stopwatch that judges
them.
"""

from eenet.routing import ALWAYS, Compaction, Routed, route
from eenet.runtime.deployed import EarlyExitRuntime
from eenet.runtime.exported import ExportedRuntime
from eenet.runtime.load import load
from eenet.runtime.routed_onnx import RoutedOnnx
from eenet.runtime.stopwatch import Times, speed_row, time_rounds

__all__ = [
    "ALWAYS",
    "Compaction",
    "EarlyExitRuntime",
    "ExportedRuntime",
    "Routed",
    "RoutedOnnx",
    "Times",
    "load",
    "route",
    "speed_row",
    "time_rounds",
]
