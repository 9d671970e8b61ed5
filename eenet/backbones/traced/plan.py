"""Which of the places where a graph can be cut become stages, and how to find them again in another mode's graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Literal

import torch
from torch import fx

from eenet.backbones.traced.channels import channel_axis
from eenet.backbones.traced.cuts import MOST_LIVE, Cut, Places, main, shapes_of
from eenet.errors import UserError

ExitsAt = list[int] | list[str] | dict[str, list[float]] | None
Channels = Literal["first", "last"] | None

FEW = 3
"""Tensors that a state holds, but where an exit by cost would be far."""

FAR = 0.08
"""How far from a wished fraction of the MACs a cut may be before one on more tensors is taken."""

NEAR = 0.03
"""How much farther than the nearest cut the end of a block may be."""


@dataclass(frozen=True)
class Point:
    """A chosen cut, without its graph.

    Attributes:
        name: The module that ends there.
        after: As of `Cut`.
        shapes: Of the live tensors, with the batch as `n`.
        last: The operation before it.
        macs: Before it.
    """

    name: str
    after: tuple[frozenset[str], int]
    shapes: list[list[str]]
    last: str
    macs: int


def point(places: Places, cut: Cut) -> Point:
    """A cut without its graph."""
    return Point(cut.name, cut.after, shapes_of(cut.live), str(places.order[cut.place].target), cut.macs)


def choose(places: Places, exits_at: ExitsAt, label: str, channels: Channels = None) -> list[Cut]:
    """The cuts after which stages end, the last one in front of the model's own head.

    Args:
        places: Of the graph.
        exits_at: What was asked for.
        label: Of the model, for messages.
        channels: Which axis holds them, where it was said.

    Raises:
        UserError: The graph has no such cuts.
    """
    last = final_cut(places, label)
    earlier = [cut for cut in places.cuts if cut.place < last.place]
    few = [cut for cut in earlier if len(cut.live) <= FEW]
    if exits_at is None:
        chosen = usual(few, len(last.live), channels)
    elif isinstance(exits_at, dict):
        chosen = by_cost(earlier, exits_at, sum(places.macs))
    elif all(isinstance(name, int) for name in exits_at):
        chosen = by_number(usual(few, len(last.live), channels), exits_at)  # type: ignore[arg-type]
    else:
        chosen = [by_name(places, str(name), last) for name in exits_at]
    if any(one.place >= other.place for one, other in pairwise(chosen)):
        raise UserError("backbone.exits_at", exits_at, "must be in the order in which the model runs, each once")
    return [*chosen, last]


def final_cut(places: Places, label: str) -> Cut:
    """Where the last stage ends: after the last product but one, on a tensor like those before.

    On one tensor, if such a place is not far from the end.
    """
    cuts = [cut for cut in places.cuts if places.captured.output not in cut.live and len(cut.live) <= FEW]
    found = None
    for most in (1, FEW):
        pool = [cut for cut in cuts if len(cut.live) <= most]
        like = _rank(pool[len(pool) // 2]) if pool else None
        cut = next((cut for cut in reversed(pool) if _rank(cut) == like), None)
        if cut is not None and (found is None or cut.macs > found.macs + FAR * sum(places.macs)):
            found = cut
    if found is None:
        raise UserError("model", label, "has no place where three tensors of the batch or fewer are all that is needed")
    return found


def _rank(cut: Cut) -> int:
    return main(cut.live).meta["val"].ndim


def usual(cuts: Sequence[Cut], most: int, channels: Channels) -> list[Cut]:
    """Cuts where a block ends, on several tensors where these are few; other places where those are, too.

    Args:
        cuts: All.
        most: Tensors where the last block ends, and so of others.
        channels: Which axis holds them; where it was not said, other places are those where the graph says so.
    """
    like = [cut for cut in cuts if len(cut.live) <= most]
    found = list(filter(_ends_block, like))
    for wider in (filter(_ends_block, cuts), (cut for cut in like if cut.whole), like, cuts):
        if len(found) < 4:
            found = max(found, [cut for cut in wider if channels or _says_channels(cut)], key=len)
    return found


def _ends_block(cut: Cut) -> bool:
    """Whether a member of a list or a child of the model ends there."""
    return cut.whole and (cut.name.rpartition(".")[2].isdigit() or "." not in cut.name)


def _says_channels(cut: Cut) -> bool:
    try:
        channel_axis(main(cut.live), cut.name)
    except UserError:
        return False
    return True


def by_number(cuts: Sequence[Cut], numbers: Sequence[int]) -> list[Cut]:
    """The usual cuts with these numbers."""
    if any(not 0 <= number < len(cuts) for number in numbers):
        raise UserError(
            "backbone.exits_at", list(numbers), f"the model has places 0 to {len(cuts) - 1}; see `eenet inspect`"
        )
    return [cuts[number] for number in numbers]


def by_cost(cuts: Sequence[Cut], wish: dict[str, list[float]], total: int) -> list[Cut]:
    """The cuts nearest to fractions of the MACs: on few tensors, and where a block ends, if such a one is near.

    Raises:
        UserError: No fractions, fractions out of range, or two that have the same nearest cut.
    """
    fractions = wish.get("fractions") if set(wish) == {"fractions"} else None
    if not fractions or any(not 0 < fraction < 1 for fraction in fractions):
        raise UserError("backbone.exits_at", wish, "must be {fractions: [...]}, each between 0 and 1")
    chosen = []
    for fraction in fractions:
        for most in (1, FEW, MOST_LIVE):
            pool = [cut for cut in cuts if len(cut.live) <= most]
            if _distance(pool, fraction, total) <= FAR:
                break
        if not pool:
            raise UserError("backbone.exits_at", wish, "the model has no place to cut")
        limit = _distance(pool, fraction, total) + NEAR
        blocks = [cut for cut in pool if cut.whole and abs(cut.macs / total - fraction) <= limit]
        chosen.append(min(blocks or pool, key=lambda cut: abs(cut.macs / total - fraction)))
    if len({cut.place for cut in chosen}) < len(chosen):
        near = ", ".join(f"{cut.macs / total:.2f}" for cut in cuts if len(cut.live) == 1)
        raise UserError("backbone.exits_at", wish, f"two fractions meet at one place; there are places at {near}")
    return chosen


def _distance(cuts: Sequence[Cut], fraction: float, total: int) -> float:
    return min((abs(cut.macs / total - fraction) for cut in cuts), default=1.0)


def by_name(places: Places, name: str, last: Cut) -> Cut:
    """The cut at which a module ends.

    Raises:
        UserError: No such module, one that computes nothing of its own, or one inside a residual branch.
    """
    place = places.ends.get(name)
    if place is None:
        near = ", ".join(get_close_matches(name, places.ends, 3))
        problem = f"the model runs no such module; near it: {near or 'none'}"
        raise UserError("backbone.exits_at", name, problem)
    if place >= last.place and name != last.name:
        raise UserError(
            "backbone.exits_at", name, "only the model's own head follows it, which is always the last exit"
        )
    begin, after, end = places.stretch(place)
    cut = places.best(begin, end, after) if after is not None else None
    inside = places.live[place]
    within = cut is not None and cut.name != name and len(inside or ()) != len(cut.live)
    if cut is None or within or (len(cut.live) > 1 and not places.made_in(name, cut.live)):
        usable = [one.name for one in places.cuts if len(one.live) == 1 and one.place < last.place]
        near = ", ".join(get_close_matches(name, usable, 3, 0.3))
        problem = (
            f"ends inside a residual branch or a block, where more than its own result is needed later; use {near}"
        )
        raise UserError("backbone.exits_at", name, problem)
    return cut


def aligned(places: Places, points: Sequence[Point]) -> list[Cut]:
    """The cuts of another graph of the same model at the same points; a `UserError` where the graphs differ there."""
    found = []
    for wanted in points:
        begin, end = places.after(wanted.after)
        cut = None if begin is None else places.best(begin, end, wanted.after, wanted.shapes, wanted.last)
        if cut is None:
            problem = "the model runs other operations there when it trains; choose another exit"
            raise UserError("backbone.exits_at", wanted.name, problem)
        found.append(cut)
    return found


@dataclass(frozen=True)
class Read:
    """What an exit reads of a state.

    Attributes:
        tensor: Which one.
        axis: Of the channels, once the batch is in front.
        ndim: Axes of the tensor.
        width: Number of channels.
    """

    tensor: int
    axis: int
    ndim: int
    width: int


@dataclass(frozen=True)
class Plan:
    """The chosen cuts, without their graph.

    Attributes:
        points: The cuts.
        reads: What an exit at each reads.
        ends: The stage that ends where a module ends.
        mask: Whether states end with the attention mask.
        classes: Width of the logits.
        macs: Of the whole model on one sample.
        places: The fraction of the MACs before each cut on one tensor that could have been chosen.
    """

    points: tuple[Point, ...]
    reads: tuple[Read, ...]
    ends: dict[str, int]
    mask: bool
    classes: int
    macs: int
    places: tuple[float, ...]


def make_plan(places: Places, cuts: Sequence[Cut], channels: Channels, mask: bool, label: str) -> Plan:
    """Cuts as a plan; a `UserError` where it is not known where channels are, or the model gives no logits."""
    reads = tuple(read(places, cut, channels) for cut in cuts)
    ends: dict[str, int] = {}
    for stage, cut in enumerate(cuts):
        begin, _, end = places.stretch(cut.place)
        ends |= {name: stage for name, place in places.ends.items() if begin <= place < end and place <= cut.place}
        ends.setdefault(cut.name, stage)
    width = classes(places.captured.output, label)
    total, points = sum(places.macs), tuple(point(places, cut) for cut in cuts)
    single = tuple(cut.macs / total for cut in places.cuts if len(cut.live) == 1) if total else ()
    return Plan(points, reads, ends, mask, width, total, single)


def read(places: Places, cut: Cut, channels: Channels) -> Read:
    """What an exit reads at a cut."""
    node = main(cut.live)
    ndim, batch = node.meta["val"].ndim, places.captured.batch_axes(node)[0]
    if channels is None or ndim == 2:
        found = channel_axis(node, cut.name)
        axis = found + (found < batch)
    else:
        axis = 1 if channels == "first" else ndim - 1
        found = axis - (axis <= batch) if batch else axis
    return Read(cut.live.index(node), axis, ndim, int(node.meta["val"].shape[found]))


def classes(node: fx.Node, label: str) -> int:
    """Width of the logits; a `UserError` where they are no `(batch, classes)`."""
    shape = node.meta["val"].shape
    if len(shape) != 2 or isinstance(shape[1], torch.SymInt):
        said = ["n" if isinstance(size, torch.SymInt) else size for size in shape]
        raise UserError("model", label, f"returns a tensor of shape {said}, and no logits (batch, classes)")
    return int(shape[1])
