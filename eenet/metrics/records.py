"""Per-sample records of a whole data set, gathered over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


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
        """Each tensor, `(samples, ...)`, in the order of the data set.

        They are on the CPU, where they are judged in float64, which not every GPU has.
        """
        rows = {name: torch.cat(found) for name, found in self.rows.items()}
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if processes == 1:
            return {name: values.cpu() for name, values in rows.items()}
        from torchmetrics.utilities.distributed import gather_all_tensors

        rows = {name: torch.cat(gather_all_tensors(found)) for name, found in rows.items()}
        samples = len(rows[self.names[0]])
        dealt = torch.cat([torch.arange(rank, samples, processes) for rank in range(processes)])
        return {name: values.cpu()[dealt.argsort()] for name, values in rows.items()}
