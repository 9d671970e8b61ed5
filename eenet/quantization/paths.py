"""Paths: the widths of the segments from the first on, as the tree of everything a sample can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Literal

from eenet.errors import UserError

Path = tuple[int, ...]
"""Widths of the segments from the first; as long as the number of segments run."""

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
class PathTree:
    """The beginnings of some full paths. A node is the number of a beginning; a sample can leave at each.

    Attributes:
        nodes: The paths, shorter ones first.
    """

    nodes: tuple[Path, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "PathTree":
        """The tree of some full paths of equal length.

        Example:
            >>> PathTree.of([(8, 8), (8, 4)]).nodes
            ((8,), (8, 8), (8, 4))
        """
        segments = len(paths[0])
        prefixes = [path[:length] for length in range(1, segments + 1) for path in paths]
        return cls(tuple(dict.fromkeys(prefixes)))

    @cached_property
    def index(self) -> dict[Path, int]:
        """Node by path."""
        return {path: node for node, path in enumerate(self.nodes)}

    @property
    def segments(self) -> int:
        """Length of the full paths."""
        return len(self.nodes[-1])

    @property
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
            >>> PathTree.of([(8, 8), (8, 4)]).reachable(0)
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
