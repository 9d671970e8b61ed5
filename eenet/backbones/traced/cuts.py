"""Where a captured graph can be cut: places at which few tensors with a batch axis are all that later work needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from eenet.backbones.traced.capture import Captured, root_of, written
from eenet.costs import running_macs

MOST_LIVE = 4
"""Tensors that a state may hold."""

_PRODUCTS = ("conv", "linear", "matmul", "addmm", "mm", "bmm", "baddbmm", "einsum", "lstm", "gru", "bilinear")


@dataclass(frozen=True)
class Cut:
    """A place between two operations.

    Attributes:
        place: Number of the last operation before it.
        after: The weights of the last product before it and how often they had been used by then: this names the
            place in the graph of either mode.
        live: What later operations need of earlier ones.
        name: The module that ends there.
        whole: Whether that module is a block, and no single layer.
        macs: Before the cut, of one sample.
    """

    place: int
    after: tuple[frozenset[str], int]
    live: tuple[fx.Node, ...]
    name: str
    whole: bool
    macs: int


class Places:
    """The places of a captured graph.

    Args:
        captured: The graph.
        macs: Of each operation for one sample, from `count_nodes`.
    """

    def __init__(self, captured: Captured, macs: list[int]) -> None:
        self.captured, self.macs = captured, macs
        self.order = captured.operations
        self.number = {node: place for place, node in enumerate(self.order)}
        self.data = data_nodes(captured)

    @cached_property
    def live(self) -> list[tuple[fx.Node, ...] | None]:
        """The live tensors after each operation, `None` where no cut can be."""
        last = {node: self._last_use(node) for node in (*self.captured.inputs, *self.order) if node in self.data}
        writes = [(self.number[node], root) for node, root in self.captured.kept.items()]
        found: list[tuple[fx.Node, ...] | None] = []
        alive = [node for node in self.captured.inputs if last[node] >= 0]
        for place, node in enumerate(self.order):
            if node in last:
                alive.append(node)
            alive = [one for one in alive if last[one] > place]
            later = {root for at, root in writes if at > place}
            found.append(tuple(alive) if self._usable(alive, later) else None)
        return found

    def _last_use(self, node: fx.Node) -> int:
        uses = [
            self.number.get(user, len(self.order)) for user in node.users if user in self.data or user.op == "output"
        ]
        return max(uses, default=-1)

    def _usable(self, alive: list[fx.Node], written_later: set[fx.Node]) -> bool:
        if not 0 < len(alive) <= MOST_LIVE:
            return False
        if not all(isinstance(node.meta["val"], Tensor) and self.captured.batch_axes(node) for node in alive):
            return False
        known = {self.captured.length(size) for node in alive for size in node.meta["val"].shape}
        return known.issuperset(self.captured.lengths()) and not any(root_of(node) in written_later for node in alive)

    @cached_property
    def products(self) -> list[tuple[int, tuple[frozenset[str], int]]]:
        """Operations that multiply by weights: their numbers, and what names each in either mode."""
        seen: dict[frozenset[str], int] = {}
        found = []
        for place, node in enumerate(self.order):
            if node not in self.data or not _multiplies(node):
                continue
            weights = frozenset().union(*(self._weights(arg) for arg in node.all_input_nodes if arg not in self.data))
            if weights:
                seen[weights] = seen.get(weights, 0) + 1
                found.append((place, (weights, seen[weights])))
        return found

    def _weights(self, node: fx.Node) -> frozenset[str]:
        if node in self.captured.weights:
            return frozenset([self.captured.weights[node]])
        if isinstance(node.meta.get("val"), torch.SymInt):
            return frozenset()
        return frozenset().union(*map(self._weights, node.all_input_nodes))

    @cached_property
    def cuts(self) -> list[Cut]:
        """The best place after each product, where there is one: fewest tensors, then the last before they flatten."""
        found = []
        ends = [place for place, _ in self.products[1:]] + [len(self.order)]
        for (begin, after), end in zip(self.products, ends, strict=True):
            if (cut := self.best(begin, end, after)) is not None:
                found.append(cut)
        return found

    def stretch(self, place: int) -> tuple[int, tuple[frozenset[str], int] | None, int]:
        """The product before a place, what names it, and where the next one is."""
        begin, after, end = 0, None, len(self.order)
        for number, key in self.products:
            if number > place:
                return begin, after, number
            begin, after = number, key
        return begin, after, end

    def after(self, key: tuple[frozenset[str], int]) -> tuple[int | None, int]:
        """A product by what names it, and where the next one is."""
        begin = next((number for number, named in self.products if named == key), None)
        return begin, len(self.order) if begin is None else self.stretch(begin)[2]

    def made_in(self, name: str, live: Iterable[fx.Node]) -> bool:
        """Whether all tensors come out of one module."""
        return all(name in paths(node) for node in live)

    def best(
        self, begin: int, end: int, after: tuple[frozenset[str], int], shapes: object = None, last: str | None = None
    ) -> Cut | None:
        """The best cut after an operation and before another.

        Args:
            begin: Number of the first.
            end: Number of the second.
            after: What names the first.
            shapes: Shapes that the live tensors must have, if given.
            last: The operation that must be before the cut, if given.
        """
        usable = [
            place
            for place in range(begin, end)
            if (live := self.live[place]) is not None
            and shapes in (None, shapes_of(live))
            and last in (None, str(self.order[place].target))
        ]
        if not usable:
            return None
        fewest = min(len(self.live[place] or ()) for place in usable)
        usable = [place for place in usable if len(self.live[place] or ()) == fewest]
        name, whole = self._ended(begin, usable[-1])
        place = self.ends.get(name, -1)
        if whole and place in usable:  # what its parent does to the block's result belongs to it
            while place + 1 in usable and name.startswith(f"{self._inner(place + 1)}."):
                place += 1
        else:
            place = max(usable, key=lambda place: (main(self.live[place] or ()).meta["val"].ndim in (3, 4), place))
        return self.at(place, begin, after)

    def at(self, place: int, begin: int, after: tuple[frozenset[str], int]) -> Cut:
        """The cut at a usable place in the stretch of one product."""
        name, whole = self._ended(begin, place)
        return Cut(place, after, self.live[place] or (), name, whole, sum(self.macs[: place + 1]))

    @cached_property
    def ends(self) -> dict[str, int]:
        """The last operation of each module."""
        return {path: place for place, node in enumerate(self.order) if node in self.data for path in paths(node)}

    def _inner(self, place: int) -> str:
        return next(reversed(paths(self.order[place])), "")

    @cached_property
    def blocks(self) -> set[str]:
        """The modules that hold others."""
        return {parent for node in self.order for path in paths(node) if (parent := path.rpartition(".")[0])}

    def _ended(self, begin: int, place: int) -> tuple[str, bool]:
        """The outermost module that ends in a stretch; else the innermost around it."""
        inner = paths(self.order[begin])
        ended = [
            path for node in self.order[begin : place + 1] for path in paths(node) if self.ends.get(path, -1) <= place
        ]
        usual = inner[-1] if inner else ""
        name = min(ended, key=lambda path: (path not in self.blocks, path.count(".")), default=usual)
        return name, name in self.blocks


def paths(node: fx.Node) -> list[str]:
    """The modules in which an operation runs, outermost first, without the model itself."""
    stack = (path for path, _ in node.meta.get("nn_module_stack", {}).values())
    return [path.removeprefix("model.") for path in stack if path.startswith("model.")]


def shapes_of(nodes: Iterable[fx.Node]) -> list[list[str]]:
    """Shapes of tensors, with the batch as `n`."""
    return [["n" if isinstance(size, torch.SymInt) else str(size) for size in node.meta["val"].shape] for node in nodes]


def main(live: Iterable[fx.Node]) -> fx.Node:
    """The tensor that an exit reads: the last made of those that hold real numbers."""
    nodes = list(live)
    real = [node for node in nodes if node.meta["val"].is_floating_point() and node.meta["val"].ndim > 1]
    return (real or nodes)[-1]


def data_nodes(captured: Captured) -> set[fx.Node]:
    """What depends on the samples, draws at random or writes; all else follows from weights and lengths."""
    found = set(captured.inputs)
    for node in captured.operations:
        if isinstance(node.meta.get("val"), torch.SymInt | int | bool | float):
            continue
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _idle(node)
        if random or written(node) or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _idle(node: fx.Node) -> bool:
    return "dropout" in str(node.target) and node.args[-1] is False


def _multiplies(node: fx.Node) -> bool:
    name = str(node.target).removeprefix("aten.").partition(".")[0].lstrip("_")
    return any(name.startswith(product) for product in _PRODUCTS)


def count_nodes(captured: Captured, weights: dict[fx.Node, Tensor], example: list[Tensor], rows: int) -> list[int]:
    """MACs of every operation for one sample, counted on tensors without content.

    Args:
        captured: The graph.
        weights: Value of each placeholder of a weight or a constant.
        example: The leaves of an input.
        rows: On how many samples; batch norm that trains refuses one value per channel.
    """
    counts: list[int] = []

    class Counting(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            before = so_far()
            result = super().run_node(node)
            if node.op == "call_function":
                counts.append(so_far() - before)
            return result

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, running_macs() as so_far:
        leaves = [mode.from_tensor(leaf[:rows], static_shapes=True) for leaf in example]
        values = dict(zip(captured.inputs, leaves, strict=True))
        values |= {node: mode.from_tensor(value.detach(), static_shapes=True) for node, value in weights.items()}
        values[captured.device] = leaves[0].device  # type: ignore[assignment]
        placeholders = captured.graph.find_nodes(op="placeholder")
        Counting(fx.GraphModule({}, captured.graph)).run(*(values.get(node) for node in placeholders))
    return [count // rows for count in counts]
