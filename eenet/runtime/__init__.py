"""Routed inference: run only what each sample needs.

Here live `route` (batches that shrink as samples leave), and what deploys it.
"""

from eenet.runtime.route import Routed, route

__all__ = ["Routed", "route"]
