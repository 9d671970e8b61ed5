"""Temperature scaling of every exit, fitted on validation logits."""

import math

import torch
from torch import Tensor

from eenet.errors import UserError

MAX_TEMPERATURE = 100.0
"""Temperatures lie between its inverse and it."""

HALVINGS = 32
"""Steps of the bisection; the logarithm of a temperature is exact to about 1e-9."""


def fit_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature of each exit that minimises its mean NLL (Guo et al. 2017, section 4.2).

    The NLL of `logits / T` is convex in `1 / T`, so the sign of its derivative is bisected in `log T`, from `T = 1`. An
    exit that is right everywhere goes towards the lower bound, as far as its NLL can still be told from 0.

    Args:
        logits: Of a validation split, `(samples, exits, classes)`.
        labels: `(samples,)`.

    Returns:
        `(exits,)` float64, to divide the logits by, from 1 / 100 to 100.

    Raises:
        UserError: No samples, or logits that are not finite.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0]], [[4.0, 0.0]], [[4.0, 0.0]], [[4.0, 0.0]]])
        >>> temperature = fit_temperatures(logits, torch.tensor([0, 0, 0, 1]))
        >>> round(torch.sigmoid(4 / temperature).item(), 6)
        0.75
    """
    if not len(logits):
        raise UserError("validation samples", 0, "temperatures need a validation split with samples")
    if not logits.isfinite().all():
        bad = (~logits.isfinite()).any(2).any(0).nonzero().flatten().tolist()
        raise UserError("exits", bad, "have logits that are not finite on validation; did their training diverge?")
    return torch.stack([_fit(logits[:, exit].double(), labels) for exit in range(logits.shape[1])])


def _fit(logits: Tensor, labels: Tensor) -> Tensor:
    # In the margins over the true class the NLL is logsumexp(margins / T), which needs no label and is exactly flat
    # where the logits of a sample are equal.
    margins = logits - logits.gather(1, labels[:, None])
    log_inverse = logits.new_zeros(())
    step = math.log(MAX_TEMPERATURE)
    for _ in range(HALVINGS):
        step /= 2
        slope = ((log_inverse.exp() * margins).softmax(1) * margins).sum()
        log_inverse = log_inverse - step * slope.sign()
    return (-log_inverse).exp()
