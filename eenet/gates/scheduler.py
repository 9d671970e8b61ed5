"""The exit scoring functions of EENet (Ilhan, Chow, Hu, Tekin, Liu, WACV 2024)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.gates.base import Gate, Memory
from eenet.gates.confidence import confidence


class SchedulerGate(Gate):
    """Scores how likely an exit is to be right, from its probabilities, three confidences and the earlier scores.

    The confidences are maximum probability, minus the entropy, and agreement: the share of the exits so far, this one
    included, whose predictions agree with this one's. Each exit has a perceptron with one hidden layer [inferred].

    Args:
        num_gates: One per exit but the last.
        num_classes: Classes of the logits.
        hidden: Width of the hidden layer.

    Example:
        >>> SchedulerGate(3, 10)(torch.zeros(2, 3, 10)).shape
        torch.Size([2, 3])
    """

    def __init__(self, num_gates: int, num_classes: int, hidden: int = 16) -> None:
        super().__init__(num_gates)
        self.num_classes, self.hidden = num_classes, hidden
        self.scorers = nn.ModuleList(
            nn.Sequential(nn.Linear(num_classes + 3 + exit, hidden), nn.ReLU(), nn.Linear(hidden, 1))
            for exit in range(num_gates)
        )

    def arguments(self) -> dict[str, Any]:
        """Number of gates, classes and width."""
        return {**super().arguments(), "num_classes": self.num_classes, "hidden": self.hidden}

    def start(self, logits: Tensor) -> Memory:
        """No votes and no scores yet: `(batch, classes)` and `(batch, gates)`."""
        return torch.zeros_like(logits), logits.new_zeros(logits.shape[0], self.num_gates)

    def at(self, exit: int, logits: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Logit of the probability that one exit is right, `(batch,)`."""
        votes, earlier = memory
        own, votes = self.own(exit, logits, votes)
        score = self.scorers[exit](torch.cat([own, earlier[:, :exit]], dim=1)).squeeze(-1)
        place = F.one_hot(torch.tensor(exit, device=score.device), self.num_gates).to(score.dtype)
        return score, (votes, earlier + score.sigmoid().unsqueeze(1) * place)

    def own(self, exit: int, logits: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
        """What an exit's perceptron reads beside the earlier scores; no weight changes it.

        Args:
            exit: Number of the exit, from 0.
            logits: That exit's logits, `(batch, classes)`.
            votes: Exits before that predict each class, `(batch, classes)`.

        Returns:
            Probabilities and confidences, `(batch, classes + 3)`, and the votes with this exit's.
        """
        prediction = logits.argmax(-1, keepdim=True)
        votes = votes + F.one_hot(prediction.squeeze(-1), self.num_classes).to(votes.dtype)
        measures = [
            confidence(logits),
            confidence(logits, "entropy"),
            votes.gather(1, prediction).squeeze(1) / (exit + 1),
        ]
        return torch.cat([logits.softmax(-1), torch.stack(measures, dim=1)], dim=1), votes
