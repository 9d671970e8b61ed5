"""Per-sample records of a whole data set, gathered over processes."""

from collections.abc import Sequence

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Records(Metric):
    """Named tensors, one row per sample, concatenated over batches and processes.

    Args:
        names: Of the tensors.

    Example:
        >>> import torch
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
        """Each tensor, `(samples, ...)`."""
        return {name: dim_zero_cat(getattr(self, f"rows_{name}")) for name in self.names}
