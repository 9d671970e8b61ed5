"""Connections: what an exit takes from the exits before it, between its inference module and its logits."""

from eenet.connections.base import Apart, Boosted, Connection
from eenet.connections.past_future import PastFuture
from eenet.connections.zero_time_waste import Ensemble, ZeroTimeWaste

__all__ = ["Apart", "Boosted", "Connection", "Ensemble", "PastFuture", "ZeroTimeWaste"]
