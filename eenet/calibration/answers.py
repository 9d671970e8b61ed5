"""What every exit of a network says of samples, to choose points and to judge them without a run folder."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eenet.calibration.search import Scored
from eenet.network import EarlyExitNetwork


class Answers(NamedTuple):
    """What every exit says of samples, nothing skipped.

    Attributes:
        logits: `(samples, exits, classes)`.
        scores: Of the gates, `(samples, exits - 1)`.
        labels: `(samples,)`.
        fractions: Cost of leaving at each exit, as fractions of the full network's, float64 `(exits,)`.
    """

    logits: Tensor
    scores: Tensor
    labels: Tensor
    fractions: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, network: EarlyExitNetwork, batches: Iterable[tuple[Any, Tensor]]) -> "Answers":
        """Those of a network, which is put into evaluation mode.

        Args:
            network: Whose inputs are tensors.
            batches: Inputs and labels, as `data.loader("val")` gives them.

        Example:
            >>> from eenet.backbones import CifarResNet
            >>> from eenet.calibration import policy_for_budget
            >>> from eenet.policies import SequentialGates
            >>> network = EarlyExitNetwork(CifarResNet(8, num_classes=10), exits=[0, 1])
            >>> answers = Answers.of(network, [(torch.randn(4, 3, 32, 32), torch.arange(4))] * 2)
            >>> answers.logits.shape, answers.scores.shape, len(answers.labels)
            (torch.Size([8, 3, 10]), torch.Size([8, 2]), 8)
            >>> point = policy_for_budget(SequentialGates(), answers.scored, budget=0.9)
            >>> answers.scored.cost(point) <= 0.9
            True
        """
        found = [(*network.eval()(inputs), labels) for inputs, labels in batches]
        logits, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cls(logits, scores, labels, network.costs.fractions())

    @property
    def scored(self) -> Scored:
        """What points are chosen from and judged on."""
        predictions = self.logits.argmax(-1)
        return Scored(predictions, self.scores, predictions == self.labels[:, None], self.fractions)
