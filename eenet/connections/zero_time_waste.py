"""Zero Time Waste: exits reuse what those before them said (Wołczyk et al., NeurIPS 2021, arXiv 2106.05409)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.connections.base import Connection
from eenet.errors import UserError


class Ensemble(nn.Module):
    """At each exit a weighted geometric mean of the probabilities of those passed, `q_m ~ b_m prod_j p_j^(w_mj)`.

    Until it is fitted every exit has weight 1 for itself and 0 for the others. The weights come from
    `eenet.calibration.fit_ensemble`, and no gradient changes them.

    Args:
        num_gates: Early exits.
        num_classes: Classes.

    Example:
        >>> log_p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> [round(p, 3) for p in Ensemble(2, 2).at(1, log_p)[0].exp().tolist()]
        [0.9, 0.1]
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_gates: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(num_gates))
        self.register_buffer("bias", torch.zeros(num_gates, num_classes))

    @property
    def fitted(self) -> bool:
        """Whether the weights are others than at first."""
        return not torch.equal(self.weight, torch.eye(len(self.weight), device=self.weight.device))

    def reset(self) -> None:
        """Every exit stands for itself again."""
        self.weight.copy_(torch.eye(len(self.weight)))
        self.bias.zero_()

    def at(self, exit: int, log_p: tuple[Tensor, ...]) -> Tensor:
        """Logits of an exit's ensemble, `(batch, classes)`.

        Args:
            exit: Its number, from 0.
            log_p: Logarithms of the probabilities at this exit and those before it, from the first, `(batch, classes)`.
        """
        weight = self.weight[exit : exit + 1, : exit + 1]
        return F.linear(torch.stack(log_p, dim=-1), weight).squeeze(-1) + self.bias[exit]


class ZeroTimeWaste(Connection):
    """Cascading connections between inference modules, and an ensemble of the exits passed.

    **Cascade.** An inference module reads the detached logits of the one before it, too, in a linear layer beside its
    own last one: `z_m = g_m(x) + U_m norm(stop(z_(m-1)))`, which for a linear head is one layer on both (section 2.1).
    The layer norm, without learned scale, is an option of the authors' code, on by default; without it logits grow
    from exit to exit, and large steps diverge.

    **Ensemble.** An exit answers by `Ensemble` of the modules passed (section 2.2), which is fitted to training samples
    after the modules. The last exit is the backbone's own head alone, as in the authors' code.

    Args:
        num_gates: Early exits.
        num_classes: Classes.
        cascade: Connect the modules.
        ensemble: Answer by the ensemble.

    Raises:
        UserError: Neither is asked for.
    """

    name: ClassVar[str] = "zero_time_waste"

    def __init__(self, num_gates: int, num_classes: int, cascade: bool = True, ensemble: bool = True) -> None:
        super().__init__(num_gates, num_classes)
        if not (cascade or ensemble):
            raise UserError("network.connection.cascade", False, "or ensemble must be true; leave the connection out")
        layers = [nn.Linear(num_classes, num_classes, bias=False) for _ in range(num_gates - 1)] if cascade else []
        self.cascade = nn.ModuleList(layers)
        self.ensemble = Ensemble(num_gates, num_classes) if ensemble else None

    def at(self, exit: int, own: Tensor, passed: Any) -> tuple[Tensor, Any]:
        """Logits of the ensemble, or of the module; the module's logits and what the ensembles of later exits read."""
        logits = own
        if exit and len(self.cascade):
            logits = own + self.cascade[exit - 1](F.layer_norm(passed[0].detach(), (self.num_classes,)))
        if self.ensemble is None:
            return logits, (logits,)
        log_p = (*passed[1:], logits.log_softmax(-1))
        return self.ensemble.at(exit, log_p), (logits, *log_p)
