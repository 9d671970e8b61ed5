"""When dropping the samples that have left is worth the copy of those that stay."""

from typing import NamedTuple


class Compaction(NamedTuple):
    """Compact when the stage runs saved outweigh the copy: `leaving * stages_left > copy_cost * staying + fixed_cost`.

    A sample that has left but was not dropped rides along; its result is fixed. Both costs are in runs of one stage on
    one row. The defaults are those of a CPU and a small ViT (128 wide, 17 tokens, 100 microseconds per block and row):
    0.15 microseconds to copy a row, 30 for finding the rows and a copy's fixed part.

    Attributes:
        copy_cost: Of copying the state of one row.
        fixed_cost: Of a compaction, whatever its size.

    Example:
        >>> rule = Compaction(copy_cost=0.1, fixed_cost=0.0)
        >>> rule.pays(leaving=1, staying=31, stages_left=2), rule.pays(leaving=1, staying=31, stages_left=4)
        (False, True)
    """

    copy_cost: float = 0.002
    fixed_cost: float = 0.3

    def pays(self, leaving: int, staying: int, stages_left: int) -> bool:
        """Whether to compact now.

        Args:
            leaving: Rows that have left and are still in the batch.
            staying: Rows that go on.
            stages_left: Stages of the backbone that were not run yet.
        """
        return leaving * stages_left > self.copy_cost * staying + self.fixed_cost


ALWAYS = Compaction(0.0, 0.0)
"""Drop every sample as soon as it has left."""
