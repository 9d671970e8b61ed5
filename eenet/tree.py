"""The tree of everything a sample can do: a node is an exit reached by a path of executions.

The stages between two exits are a segment, which runs at one of some bit-widths. A plain network has one width, so that
its tree is a chain whose nodes are its exits; that of QuEE (Regol et al., arXiv 2406.14404) branches by width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Literal

from eenet.errors import UserError

FLOAT = 32
"""Bits of a segment in floating point."""

Path = tuple[int, ...]
"""Widths of the segments from the first; as long as the number of segments run."""

Place = tuple[int, int]
"""An execution: the number of a segment, and the width at which it runs."""

Family = Literal["all", "non_increasing"]


def full_paths(widths: Sequence[int], segments: int, most: int) -> tuple[Family, list[Path]]:
    """All paths through all segments; if there are too many, those whose width never rises. [inferred]

    Args:
        widths: From the widest to the narrowest.
        segments: Number of segments.
        most: Number of paths up to which all are kept.

    Returns:
        The name of the family and its paths.

    Raises:
        UserError: Even the restricted family is larger.

    Example:
        >>> full_paths((8, 4), 2, most=3)
        ('non_increasing', [(8, 8), (8, 4), (4, 4)])
    """
    if len(widths) ** segments <= most:
        return "all", list(product(widths, repeat=segments))
    falling = list(combinations_with_replacement(widths, segments))
    if len(falling) > most:
        problem = (
            f"even the {len(falling)} paths that never rise in width are more; allow them, or fewer widths or exits"
        )
        raise UserError("network.max_paths", most, problem)
    return "non_increasing", falling


@dataclass(frozen=True)
class Tree:
    """The beginnings of some full paths. A node is the number of a beginning; a sample can leave at each.

    Samples at nodes of one place run together, whatever path they came by. In a chain the numbers of nodes, places and
    exits are the same.

    Attributes:
        nodes: The paths, shorter ones first.
    """

    nodes: tuple[Path, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Tree":
        """The tree of some full paths of equal length.

        Example:
            >>> Tree.of([(8, 8), (8, 4)]).nodes
            ((8,), (8, 8), (8, 4))
        """
        segments = len(paths[0])
        prefixes = [path[:length] for length in range(1, segments + 1) for path in paths]
        return cls(tuple(dict.fromkeys(prefixes)))

    @classmethod
    def chain(cls, num_exits: int) -> "Tree":
        """The tree of a plain network.

        Example:
            >>> Tree.chain(2).nodes
            ((32,), (32, 32))
        """
        return cls.of([(FLOAT,) * num_exits])

    @cached_property
    def branches(self) -> bool:
        """Whether a sample that goes on may go to one of several nodes, from the start on."""
        return len(self.nodes) > self.segments

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Of its executions, from the widest."""
        return tuple(sorted({path[-1] for path in self.nodes}, reverse=True))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The executions that end at some node, those of earlier segments first."""
        return tuple(dict.fromkeys((len(path) - 1, path[-1]) for path in self.nodes))

    @cached_property
    def place_of(self) -> tuple[int, ...]:
        """The number of each node's place."""
        return tuple(self.places.index((len(path) - 1, path[-1])) for path in self.nodes)

    def nodes_at(self, place: int) -> list[int]:
        """The nodes of a place.

        Example:
            >>> Tree.of([(8, 8), (8, 4), (4, 4)]).nodes_at(3)
            [3, 4]
        """
        return [node for node, other in enumerate(self.place_of) if other == place]

    def places_behind(self, node: int) -> dict[int, list[int]]:
        """The places that can be reached from a node, its own among them, each with those of its nodes that can be.

        Example:
            >>> Tree.of([(8, 8), (8, 4), (4, 4)]).places_behind(0)
            {0: [0], 2: [2], 3: [3]}
        """
        found: dict[int, list[int]] = {}
        for other in self.reachable(node):
            found.setdefault(self.place_of[other], []).append(other)
        return dict(sorted(found.items()))

    def place_name(self, place: int) -> str:
        """The exit of a place, and its width where there are several.

        Example:
            >>> Tree.chain(2).place_name(1), Tree.of([(8, 8), (8, 4)]).place_name(1)
            ('exit_1', 'exit_1_8bit')
        """
        exit, width = self.places[place]
        return f"exit_{exit}_{width}bit" if self.branches else f"exit_{exit}"

    def node_name(self, node: int) -> str:
        """A node in a sentence: its path where there are several, else its exit.

        Example:
            >>> Tree.chain(2).node_name(1), Tree.of([(8, 8), (8, 4)]).node_name(2)
            ('exit 1', 'path 8-4')
        """
        return f"path {path_name(self.nodes[node])}" if self.branches else f"exit {node}"

    def along(self, path: Path) -> list[int]:
        """The nodes of a path, from the first exit on.

        Raises:
            UserError: The tree has no such path.
        """
        if path not in self.index:
            known = ", ".join(path_name(other) for other in self.full)
            raise UserError("path", path_name(path), f"the network has {known}")
        return [self.index[path[:length]] for length in range(1, len(path) + 1)]

    @property
    def full(self) -> tuple[Path, ...]:
        """The paths through all segments."""
        return self.nodes[self.num_early :]

    @cached_property
    def index(self) -> dict[Path, int]:
        """Node by path."""
        return {path: node for node, path in enumerate(self.nodes)}

    @cached_property
    def segments(self) -> int:
        """Length of the full paths."""
        return len(self.nodes[-1])

    @cached_property
    def num_early(self) -> int:
        """Nodes at early exits; they come first."""
        return sum(len(path) < self.segments for path in self.nodes)

    def exit(self, node: int) -> int:
        """The exit at the end of a node's path."""
        return len(self.nodes[node]) - 1

    def children(self, node: int) -> list[int]:
        """Nodes one segment further."""
        path = self.nodes[node]
        return [other for other, longer in enumerate(self.nodes) if longer[:-1] == path]

    def reachable(self, node: int) -> list[int]:
        """The node itself, then every node behind it.

        Example:
            >>> Tree.of([(8, 8), (8, 4)]).reachable(0)
            [0, 1, 2]
        """
        path = self.nodes[node]
        return [other for other, longer in enumerate(self.nodes) if longer[: len(path)] == path]

    def steps(self, node: int) -> list[int]:
        """For each reachable node the child through which it is reached; the node itself for itself."""
        length = len(self.nodes[node]) + 1
        return [self.index[self.nodes[other][:length]] for other in self.reachable(node)]


def path_name(path: Path) -> str:
    """A path as it is printed.

    Example:
        >>> path_name((32, 8))
        '32-8'
    """
    return "-".join(map(str, path))


def path_shares(path: Path, shares: Sequence[float]) -> dict[str, float]:
    """Of samples that all go along one path, the shares that leave at each exit where somebody does, by path.

    Example:
        >>> path_shares((8, 4), [0.25, 0.75])
        {'8': 0.25, '8-4': 0.75}
    """
    return {path_name(path[:length]): share for length, share in enumerate(shares, 1) if share}
