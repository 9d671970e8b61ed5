"""The contract of a connection between exits, and the two without parameters."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eenet.described import Described
from eenet.objectives.boosting import boost


class Connection(Described, nn.Module, ABC):
    """Makes an exit's logits from what its inference module gives and what the exits before have passed on.

    Args:
        num_gates: Early exits.
        num_classes: Classes of the logits.

    Attributes:
        name: Its part of the method's name in results; empty where exits have none.
        connects: Whether an exit needs the inference modules of those before it.
    """

    name: ClassVar[str] = ""
    connects: ClassVar[bool] = True

    def __init__(self, num_gates: int, num_classes: int) -> None:
        super().__init__()
        self.num_gates, self.num_classes = num_gates, num_classes

    @property
    def outputs(self) -> int:
        """Width of what each inference module gives."""
        return self.num_classes

    @abstractmethod
    def at(self, exit: int, own: Tensor, passed: Any) -> tuple[Tensor, Any]:
        """What `route` calls.

        Args:
            exit: Number of the exit, from 0.
            own: What its inference module gives, `(batch, outputs)`.
            passed: What the exit before returned, for the same samples; `()` at the first.

        Returns:
            Logits `(batch, classes)`, and what later exits need: a pytree of tensors whose first axis is the batch.
        """

    def forward(self, own: Tensor) -> Tensor:
        """Logits of all early exits, `(batch, exits, classes)`, from `(batch, exits, outputs)`: `at` in turn."""
        passed, logits = (), []
        for exit in range(self.num_gates):
            found, passed = self.at(exit, own[:, exit], passed)
            logits.append(found)
        return torch.stack(logits, dim=1)

    def loss(self, own: Tensor) -> Tensor:
        """What it adds to the exits' loss in training, a scalar; from `(batch, exits, outputs)`."""
        return own.new_zeros(())


class Apart(Connection):
    """No connection: every exit stands alone.

    Example:
        >>> own = torch.ones(2, 3, 10)
        >>> Apart(3, 10)(own) is own
        True
    """

    connects = False

    def at(self, exit: int, own: Tensor, passed: Any) -> tuple[Tensor, Any]:
        """The inference module's own logits."""
        return own, ()

    def forward(self, own: Tensor) -> Tensor:
        """The same."""
        return own


class Boosted(Connection):
    """Each exit's logits are added to the detached ones of the exit before it; see `eenet.objectives.boost`.

    Example:
        >>> Boosted(2, 1).at(1, torch.tensor([[2.0]]), torch.tensor([[1.0]]))[0].item()
        3.0
    """

    name = "boosted"

    def at(self, exit: int, own: Tensor, passed: Any) -> tuple[Tensor, Any]:
        """Its logits, and the same for the next exit."""
        logits = own + passed.detach() if exit else own
        return logits, logits

    def forward(self, own: Tensor) -> Tensor:
        """As `eenet.objectives.boost`."""
        return boost(own)
