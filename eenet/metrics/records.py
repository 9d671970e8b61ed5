"""Per-sample records of a whole data set, gathered over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Records(Metric):
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

    full_state_update = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        for name in names:
            self.add_state(f"rows_{name}", [], dist_reduce_fx="cat")

    def update(self, **rows: Tensor) -> None:
        """Add a batch: every named tensor, `(batch, ...)`."""
        for name in self.names:
            getattr(self, f"rows_{name}").append(rows[name].detach())

    def compute(self) -> dict[str, Tensor]:
        """Each tensor, `(samples, ...)`, in the order of the data set."""
        rows = {name: dim_zero_cat(getattr(self, f"rows_{name}")) for name in self.names}
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if processes == 1:
            return rows
        samples = len(rows[self.names[0]])
        dealt = torch.cat([torch.arange(rank, samples, processes) for rank in range(processes)])
        return {name: values[dealt.argsort().to(values.device)] for name, values in rows.items()}
