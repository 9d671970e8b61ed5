"""BitOPs: multiply-accumulate operations times the bits of both factors (QuEE, arXiv 2406.14404)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from eenet.quantization.grid import FLOAT


def bitops(macs: int, weight_bits: int = FLOAT, activation_bits: int = FLOAT) -> int:
    """BitOPs of some MACs.

    Example:
        >>> bitops(10, 4, 8), bitops(1)
        (320, 1024)
    """
    return macs * weight_bits * activation_bits


@dataclass(frozen=True)
class PathCosts:
    """MACs per sample of what a path runs; only `quantized` runs at a segment's width, the rest at 32 bits.

    Attributes:
        embed: What comes before the first segment.
        quantized: MACs of each segment's quantizable layers.
        floating: MACs of each segment that stay in floating point.
        heads: Each exit's inference module, the last being the backbone's own classifier.
    """

    embed: int
    quantized: tuple[int, ...]
    floating: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def full(self) -> int:
        """BitOPs of the plain backbone in floating point."""
        return bitops(self.embed + sum(self.quantized) + sum(self.floating) + self.heads[-1])

    def segment(self, segment: int, width: int) -> int:
        """BitOPs of a segment.

        Example:
            >>> PathCosts(0, (100,), (1,), (0,)).segment(0, 8)
            7424
        """
        return bitops(self.quantized[segment], width, width) + bitops(self.floating[segment])

    def static(self, path: Sequence[int]) -> int:
        """BitOPs of a static network that follows a path and ends there: its own head, no other head, no predictor.

        Args:
            path: Widths of the segments that are run.
        """
        run = sum(self.segment(number, width) for number, width in enumerate(path))
        return bitops(self.embed + self.heads[len(path) - 1]) + run

    def routed(self, path: Sequence[int], predictors: int) -> int:
        """BitOPs of a sample that leaves at the end of a path: all heads passed, and the predictors.

        Args:
            path: Widths of the segments that are run.
            predictors: MACs of the predictors passed, one at each early exit.
        """
        return self.static(path) + bitops(sum(self.heads[: len(path) - 1]) + predictors)

    def table(self, widths: Sequence[int]) -> list[dict[str, int]]:
        """A row for each segment and width: `segment`, `width`, `bitops`, and `cumulative` at that width throughout."""
        rows = []
        for width in widths:
            each = [self.segment(number, width) for number in range(len(self.quantized))]
            for number, total in enumerate(accumulate(each, initial=bitops(self.embed))):
                if number:
                    row = {"segment": number - 1, "width": width, "bitops": each[number - 1], "cumulative": total}
                    rows.append(row)
        return rows
