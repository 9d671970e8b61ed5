"""Routed inference: run only what each sample needs.

Here live the steps of a network, the router that runs them on batches that shrink as samples leave and split as they
choose, and the rule that says when shrinking pays.
"""

from eenet.routing.compaction import ALWAYS, Compaction
from eenet.routing.route import Routed, route, route_steps, routed
from eenet.routing.steps import Carried, Step, make_steps

__all__ = ["ALWAYS", "Carried", "Compaction", "Routed", "Step", "make_steps", "route", "route_steps", "routed"]
