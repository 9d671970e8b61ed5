"""The tensors of a tokenized batch: what an absent one means, and which of them a network takes."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"

USUAL = {MASK: torch.ones_like, TYPES: torch.zeros_like}
"""What a network takes where they are absent: no padding, and one text instead of a pair."""


def with_usual(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs, and beside `input_ids` the mask and the token types that are absent.

    Example:
        >>> with_usual({"input_ids": torch.tensor([[5, 7]]), "attention_mask": torch.tensor([[1, 0]])})
        {'input_ids': tensor([[5, 7]]), 'attention_mask': tensor([[1, 0]]), 'token_type_ids': tensor([[0, 0]])}
    """
    ids = inputs.get(IDS)
    absent = {name: make(ids) for name, make in USUAL.items() if name not in inputs} if isinstance(ids, Tensor) else {}
    return {**inputs, **absent}


def like(example: Any, inputs: Any) -> Any:
    """Inputs with the keys of an example alone, in their order; a mask or token types that are absent are the usual.

    A network reads nothing that its example does not have, and a traced program numbers its inputs by it.

    Example:
        >>> like({"ids": 0, "mask": 0}, {"types": 1, "mask": 2, "ids": 3})
        {'ids': 3, 'mask': 2}
    """
    if not isinstance(example, Mapping):
        return inputs
    found = with_usual(inputs)
    return {key: found[key] for key in example}


def example_pair(names: Collection[str], length: int) -> dict[str, Tensor]:
    """A pair of texts without padding, so that token types of both kinds occur.

    Args:
        names: Of the tensors.
        length: Tokens of both together.

    Returns:
        For each name whole numbers, `(1, length)`.

    Example:
        >>> example_pair(["token_type_ids", "attention_mask"], 5)
        {'token_type_ids': tensor([[0, 0, 1, 1, 1]]), 'attention_mask': tensor([[1, 1, 1, 1, 1]])}
    """
    ids = torch.zeros(1, length, dtype=torch.long)
    second = (torch.arange(length) >= length // 2).long().unsqueeze(0)
    made = {IDS: ids, MASK: torch.ones_like(ids), TYPES: second}
    return {name: made[name] for name in names}
