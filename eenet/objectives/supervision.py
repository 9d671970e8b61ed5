"""What teaches the exits: the labels alone, or the last exit too."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.described import Described
from eenet.errors import UserError
from eenet.objectives.losses import weighted_sum_loss

Weights = Literal["uniform", "linear"]


class Supervision(Described, ABC):
    """Loss of the exits that are trained.

    Attributes:
        name: Its part of the method's name in results; empty for uniform deep supervision, which goes without saying.
    """

    name: str

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, teacher: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """A scalar.

        Args:
            logits: Of the exits that are trained, `(batch, exits, classes)`.
            labels: `(batch,)`.
            teacher: The last exit's logits, `(batch, classes)`, taken as constants.
            class_weights: Of what the labels teach, `(classes,)`; `None` for all alike.
        """


class DeepSupervision(Supervision):
    """The weighted sum over exits of the cross-entropy with the labels.

    Args:
        weights: `uniform`, or `linear` for later exits heavier, as PABEE does (Zhou et al., NeurIPS 2020).

    Raises:
        UserError: Other weights.
    """

    def __init__(self, weights: Weights = "uniform") -> None:
        if weights not in get_args(Weights):
            raise UserError("model.supervision.weights", weights, f"must be one of {', '.join(get_args(Weights))}")
        self.weights = weights
        self.name = "" if weights == "uniform" else f"deep_supervision_{weights}"

    def loss(self, logits: Tensor, labels: Tensor, teacher: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Cross-entropies; the teacher is not asked."""
        exits = logits.shape[1]
        weights = linear_weights(exits) if self.weights == "linear" else torch.ones(exits)
        return weighted_sum_loss(logits, labels, weights.to(logits), class_weights)


class SelfDistillation(Supervision):
    """Cross-entropy of every exit plus its divergence from the softened last exit.

    Zhang et al., "Be Your Own Teacher", ICCV 2019; without that paper's hint loss on features.

    Args:
        weight: Of the divergence, next to 1 for the cross-entropy.
        temperature: Softens both distributions.

    Raises:
        UserError: A negative weight or a temperature that is not positive.
    """

    name = "self_distillation"

    def __init__(self, weight: float = 1.0, temperature: float = 3.0) -> None:
        if not 0 <= weight < float("inf"):
            raise UserError("model.supervision.weight", weight, "must be a finite number >= 0")
        if not 0 < temperature < float("inf"):
            raise UserError("model.supervision.temperature", temperature, "must be a finite number above 0")
        self.weight, self.temperature = weight, temperature

    def loss(self, logits: Tensor, labels: Tensor, teacher: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Sum over exits of both terms; the last exit, where it is trained, equals its teacher and adds the first."""
        ones = logits.new_ones(logits.shape[1])
        divergence = distillation_losses(logits, teacher, self.temperature).mean(0).sum()
        return weighted_sum_loss(logits, labels, ones, class_weights) + self.weight * divergence


def linear_weights(exits: int) -> Tensor:
    """Weights that rise by equal steps from exit to exit, scaled to a mean of 1, `(exits,)`.

    Example:
        >>> linear_weights(3).tolist()
        [0.5, 1.0, 1.5]
    """
    return torch.arange(1, exits + 1) * (2 / (exits + 1))


def distillation_losses(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(logits / T))` of every exit (Hinton et al., 2015, section 2).

    Args:
        logits: `(batch, exits, classes)`.
        teacher: `(batch, classes)`, taken as constants.
        temperature: The `T`; its square keeps the gradient's size.

    Returns:
        `(batch, exits)`, in nats.

    Example:
        >>> distillation_losses(torch.ones(1, 2, 3), torch.zeros(1, 3), 2.0).tolist()
        [[0.0, 0.0]]
    """
    softened = F.log_softmax(teacher.detach() / temperature, dim=-1).unsqueeze(1)
    log_p = F.log_softmax(logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_p, softened.expand_as(log_p), reduction="none", log_target=True).sum(-1)
