"""Early stopping of each inference module on its own."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class EarlyStopping:
    """Each module stops after some evaluations without a better accuracy, and goes back to its best weights.

    Args:
        count: Number of modules.
        patience: Evaluations without a better accuracy after which a module stops.
    """

    def __init__(self, count: int, patience: int) -> None:
        self.patience = patience
        self.best = [float("-inf")] * count
        self.stale = [0] * count
        self.weights: list[dict[str, Tensor]] = [{} for _ in range(count)]

    @property
    def stopped(self) -> list[bool]:
        """Which modules have stopped."""
        return [stale >= self.patience for stale in self.stale]

    def update(self, modules: Sequence[nn.Module], accuracies: Sequence[float]) -> None:
        """Judge the modules that still train; one that stops gets its best weights back.

        Args:
            modules: One per exit.
            accuracies: Their accuracies on the validation split.
        """
        for i, (module, accuracy) in enumerate(zip(modules, accuracies, strict=True)):
            if self.stopped[i]:
                continue
            if accuracy > self.best[i]:
                self.best[i], self.stale[i] = accuracy, 0
                self.weights[i] = copy.deepcopy(module.state_dict())
            else:
                self.stale[i] += 1
                if self.stopped[i]:
                    module.load_state_dict(self.weights[i])

    def restore(self, modules: Sequence[nn.Module]) -> None:
        """Give every module its best weights, where there are any."""
        for module, weights in zip(modules, self.weights, strict=True):
            if weights:
                module.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"best": self.best, "stale": self.stale, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.best, self.stale, self.weights = state["best"], state["stale"], state["weights"]
