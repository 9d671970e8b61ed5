"""A routed network behind HTTP, on LitServe: what a request may hold, how requests share batches, and the server.

A request is read and refused in the process that talks to clients, so that what is wrong with one never meets the rows
of others; rows that agree in operating point and shape are routed together, whoever sent them.
"""

from eenet.serving.answers import Asked, Route, answers
from eenet.serving.bodies import Inputs, Refused

__all__ = ["Asked", "Inputs", "Refused", "Route", "answers"]
