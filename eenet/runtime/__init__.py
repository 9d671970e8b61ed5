"""Routed inference: run only what each sample needs.

Here live `route` (batches that shrink as samples leave), the rule that says when shrinking pays, the module that
deploys a routed network, the one that runs an exported folder, the queue that refills its batches from many requests,
and the stopwatch that judges them.
"""

from eenet.routing.compaction import ALWAYS, Compaction
from eenet.routing.route import Routed, route
from eenet.routing.steps import Carried, Step, make_steps
from eenet.runtime.deployed import EarlyExitRuntime
from eenet.runtime.load import ExportedRuntime, load
from eenet.runtime.queue import RebatchingQueue
from eenet.runtime.stopwatch import Times, speed_row, time_rounds

__all__ = [
    "ALWAYS",
    "Carried",
    "Compaction",
    "EarlyExitRuntime",
    "ExportedRuntime",
    "RebatchingQueue",
    "Routed",
    "Step",
    "Times",
    "load",
    "make_steps",
    "route",
    "speed_row",
    "time_rounds",
]
