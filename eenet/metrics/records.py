"""Per-sample records of a whole data set, gathered over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Records:
    """Named tensors, one row per sample, concatenated over batches; those of processes that were dealt them in turn.

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
        """Each tensor, `(samples, ...)`, in the order of the data set."""
        found = {name: torch.cat(rows) for name, rows in self.rows.items()}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return found
        from torchmetrics.utilities.distributed import gather_all_tensors

        gathered = {name: torch.cat(gather_all_tensors(rows)) for name, rows in found.items()}
        samples, processes = len(gathered[self.names[0]]), torch.distributed.get_world_size()
        dealt = torch.cat([torch.arange(rank, samples, processes) for rank in range(processes)])
        return {name: rows[dealt.argsort().to(rows.device)] for name, rows in gathered.items()}
