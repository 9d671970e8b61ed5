"""Per-sample records of a whole data set, gathered over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Records:
    """Named tensors, one row per sample, concatenated over batches and processes.

    Args:
        names: Of the tensors.

    Example:
        >>> records = Records(["exits"])
        >>> records.update(exits=torch.tensor([0, 1])), records.update(exits=torch.tensor([2]))
        (None, None)
        >>> records.compute()["exits"]
        tensor([0, 1, 2])
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.rows: dict[str, list[Tensor]] = {name: [] for name in self.names}

    @property
    def filled(self) -> bool:
        """Whether there are rows in this process."""
        return bool(self.rows[self.names[0]])

    def update(self, **rows: Tensor) -> None:
        """Add a batch: every named tensor, `(batch, ...)`."""
        for name in self.names:
            self.rows[name].append(rows[name].detach())

    def compute(self) -> dict[str, Tensor]:
        """Each tensor, `(samples, ...)`."""
        found = {name: torch.cat(rows) for name, rows in self.rows.items()}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return found
        from torchmetrics.utilities.distributed import gather_all_tensors

        return {name: torch.cat(gather_all_tensors(rows)) for name, rows in found.items()}
