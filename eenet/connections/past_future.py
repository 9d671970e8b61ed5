"""Exits that see the states passed and imitate those to come (Liao et al., NAACL 2021)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.connections.base import Connection
from eenet.errors import UserError


class PastFuture(Connection):
    """Global Past-Future early exits: a balance of all states passed and of an imitation of those to come.

    An inference module gives no logits but a state `s_j = relu(g_j(x))`. With a map to classes `R_j` of each exit, an
    exit `i` adds up the states passed and what imitators `f_j` make of its own for the exits to come,

        past_i = sum_(j<=i) R_j(s_j),    future_i = sum_(j>i) R_j(f_j(s_i)),
        logits_i = a_i past_i + (1 - a_i) future_i,    a_i = sigmoid(A relu(mean_(j<=i) G_j(s_j))),

    and `loss` is one minus the cosine of `f_j(s_i)` and the state that it stands for. A state is trained at its own
    exit; later ones take it as it is. The form is that of the authors' code, which differs from the paper's text; that
    states are those of early exits, whatever reads them, and the last exit is the backbone's own head are ours
    [inferred]. The last early exit has nothing to imitate and its logits are those of the past.

    Args:
        num_gates: Early exits.
        num_classes: Classes.
        width: Of a state.
        imitation: Weight of the imitation's loss next to 1 for each exit's cross-entropy.

    Raises:
        UserError: A width below 1 or a negative weight.

    Example:
        >>> PastFuture(3, 10)(torch.zeros(2, 3, 64)).shape
        torch.Size([2, 3, 10])
    """

    name: ClassVar[str] = "past_future"

    def __init__(self, num_gates: int, num_classes: int, width: int = 64, imitation: float = 1.0) -> None:
        super().__init__(num_gates, num_classes)
        if width < 1:
            raise UserError("network.connection.width", width, "must be at least 1")
        if not 0 <= imitation < float("inf"):
            raise UserError("network.connection.imitation", imitation, "must be a finite number >= 0")
        self.width, self.imitation = width, imitation
        self.reduce = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(num_gates))
        self.weigh = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(num_gates - 1))
        self.balance = nn.Linear(num_classes, num_classes)
        self.imitators = nn.ModuleList(nn.Linear(width, width) for _ in range(num_gates - 1))

    @property
    def outputs(self) -> int:
        """Width of a state."""
        return self.width

    def at(self, exit: int, own: Tensor, passed: Any) -> tuple[Tensor, Any]:
        """Logits, and for later exits the sums over the states passed, two of `(batch, classes)`."""
        state = own.relu()
        found = self._sums(exit, state)
        past, weights = (new + old for new, old in zip(found, passed, strict=True)) if exit else found
        kept = found if not torch.is_grad_enabled() else self._sums(exit, state.detach())
        handed_on = tuple(new + old for new, old in zip(kept, passed, strict=True)) if exit else kept
        if exit == self.num_gates - 1:
            return past, handed_on
        future = sum(self.reduce[later](self.imitate(later, state)) for later in range(exit + 1, self.num_gates))
        share = self.balance((weights / (exit + 1)).relu()).sigmoid()
        return share * past + (1 - share) * future, handed_on

    def _sums(self, exit: int, state: Tensor) -> tuple[Tensor, Tensor]:
        reduced = self.reduce[exit](state)
        return reduced, self.weigh[exit](state) if exit < self.num_gates - 1 else torch.zeros_like(reduced)

    def imitate(self, exit: int, state: Tensor) -> Tensor:
        """What an earlier exit's state, `(batch, width)`, lets expect of the state at an exit."""
        return self.imitators[exit - 1](state).relu()

    def loss(self, own: Tensor) -> Tensor:
        """The weighted mean over pairs of an exit and a later one of one minus the cosine."""
        states = own.relu()
        if self.num_gates == 1:
            return own.new_zeros(())
        found = [
            1 - F.cosine_similarity(self.imitate(later, states[:, exit]), states[:, later].detach(), dim=-1).mean()
            for exit in range(self.num_gates - 1)
            for later in range(exit + 1, self.num_gates)
        ]
        return self.imitation * torch.stack(found).mean()
