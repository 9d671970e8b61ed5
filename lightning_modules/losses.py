"""Training losses between two log lines: checked and averaged without a synchronisation per step."""

import torch
from torch import Tensor

from eenet.errors import UserError


class LossLog:
    """Collects losses with the phase and batch they came from."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, int, Tensor]] = []

    def add(self, phase: str, batch: int, loss: Tensor) -> None:
        """Remember a step's loss, a scalar."""
        self._entries.append((phase, batch, loss.detach()))

    def flush(self) -> dict[str, Tensor]:
        """Mean loss of each phase since the last flush; a `UserError` that names the first that was not finite."""
        entries, self._entries = self._entries, []
        if not entries:
            return {}
        finite = torch.stack([loss for _, _, loss in entries]).isfinite().tolist()
        if not all(finite):
            phase, batch, loss = entries[finite.index(False)]
            remedy = "training stopped and the last checkpoint is kept; lower the learning rate or look at the data"
            raise UserError("loss", loss.item(), f"in phase `{phase}`, batch {batch}: {remedy}")
        phases: dict[str, list[Tensor]] = {}
        for phase, _, loss in entries:
            phases.setdefault(phase, []).append(loss)
        return {phase: torch.stack(losses).mean() for phase, losses in phases.items()}
