"""Early stopping of each inference module on its own."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

STATE = ("judged", "stopped", "best", "best_epoch", "weights")
"""What a checkpoint keeps of an `EarlyStopping`."""


class EarlyStopping:
    """Each module stops after some epochs of training without a better accuracy, however often it is judged.

    Args:
        count: Number of modules.
        patience: Epochs without a better accuracy after which a module stops.
    """

    def __init__(self, count: int, patience: int) -> None:
        self.patience = patience
        self.judged = False
        self.stopped = [False] * count
        self.best, self.best_epoch = [float("-inf")] * count, [-1] * count
        self.weights: list[dict[str, Tensor]] = [{} for _ in range(count)]

    def update(self, modules: Sequence[nn.Module], accuracies: Sequence[float], epoch: int) -> None:
        """Keep the weights of the modules, one per exit, that still train and are more accurate than before."""
        self.judged = True
        for i, (module, accuracy) in enumerate(zip(modules, accuracies, strict=True)):
            if not self.stopped[i] and accuracy > self.best[i]:
                self.best[i], self.best_epoch[i] = accuracy, epoch
                self.weights[i] = copy.deepcopy(module.state_dict())

    def end_epoch(self, epoch: int) -> None:
        """Stop the modules that have not become better for too long, where the epoch judged them at all."""
        if self.judged:
            late = [epoch - best >= self.patience for best in self.best_epoch]
            self.stopped = [before or now for before, now in zip(self.stopped, late, strict=True)]
        self.judged = False

    def restore(self, modules: Sequence[nn.Module], stopped_only: bool = False) -> None:
        """Give modules, one per exit, their best weights, where there are any, or those alone that have stopped."""
        for module, weights, stopped in zip(modules, self.weights, self.stopped, strict=True):
            if weights and (stopped or not stopped_only):
                module.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name in STATE:
            setattr(self, name, state[name])
