"""Boosted exits: each one fits what the earlier ones miss (Yu et al., "Boosted Dynamic Neural Networks", AAAI 2023)."""

import torch
from torch import Tensor


def boost(logits: Tensor) -> Tensor:
    """Each exit's own logits plus the detached sum of the earlier ones', `F_l = f_l + stop(F_{l-1})`.

    Args:
        logits: What each head gives alone, `(batch, exits, classes)`.

    Returns:
        `(batch, exits, classes)`; the gradient of exit `l` reaches head `l` only.

    Example:
        >>> boost(torch.tensor([[[1.0], [2.0], [4.0]]])).flatten().tolist()
        [1.0, 3.0, 7.0]
    """
    earlier = logits.detach().cumsum(1)[:, :-1]
    return torch.cat([logits[:, :1], logits[:, 1:] + earlier], dim=1)
