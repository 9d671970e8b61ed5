"""Which exits a point keeps: one whose head and decision cost more than what leaves there saves is dropped."""

from collections.abc import Callable
from typing import Any

from eenet.calibration.candidates import Candidate
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork

PLACED = ("own", "max_probability", "entropy", "margin", "per_class", "patience")
"""Policies whose decision at an exit reads nothing that another exit's head makes, but for predictions."""


def check_placing(network: EarlyExitNetwork, name: str) -> None:
    """Raise a `UserError` where exits depend on each other, or there is but one: none can be dropped."""
    if name not in PLACED:
        raise UserError("place", True, f"leaves out exits one by one, for {', '.join(PLACED)} and not for {name}")
    if network.tree.num_early < 2:
        raise UserError("place", True, f"needs early exits to choose among; the network has {network.tree.num_early}")
    every = range(network.tree.num_early)
    network.keeping(every, None if name == "own" else ConfidenceGate(len(every)))


def place(candidate: Candidate, rank: Callable[[Candidate], Any]) -> Candidate:
    """Drop one early exit after the other as long as that makes a candidate no worse; one is kept.

    Backward elimination: each time the exit whose loss ranks best. Of equals there are fewer exits.

    Args:
        candidate: With all exits.
        rank: Larger for better.
    """
    best = rank(candidate)
    while (early := candidate.costs.num_exits - 1) > 1:
        fewer = [candidate.keeping([exit for exit in range(early) if exit != left]) for left in range(early)]
        ranked = [rank(one) for one in fewer]
        if max(ranked) < best:
            break
        best, candidate = max(ranked), fewer[ranked.index(max(ranked))]
    return candidate
