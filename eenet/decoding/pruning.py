"""Heads that predict among the first exit's likeliest tokens alone: vocabulary pruning, arXiv 2410.18952."""

import torch
from torch import Tensor

from eenet.backbones.gpt import Gpt
from eenet.inference_modules.language import Among

PRUNED = -1e4
"""Logit of a token that is no candidate; its probability is 0."""


def candidates_of(first: Tensor, size: int) -> Tensor:
    """The likeliest tokens of the first exit, int64 `(tokens, size)`, from its logits, `(tokens, vocabulary)`."""
    return first.topk(min(size, first.shape[-1]), dim=-1).indices


def spread_out(logits: Tensor, candidates: Tensor, vocabulary: int) -> Tensor:
    """Logits of candidates, `(tokens, size)`, at their places in the vocabulary, `(tokens, vocabulary)`.

    Example:
        >>> spread_out(torch.tensor([[1.0, 2.0]]), torch.tensor([[3, 0]]), 4).tolist()
        [[2.0, -10000.0, -10000.0, 1.0]]
    """
    return logits.new_full((len(logits), vocabulary), PRUNED).scatter(1, candidates, logits)


def prune(logits: Tensor, size: int) -> Tensor:
    """Logits `(tokens, exits, vocabulary)` when those behind the first exit choose among so many of its candidates."""
    kept = torch.zeros_like(logits[:, 0], dtype=torch.bool).scatter(1, candidates_of(logits[:, 0], size), True)
    pruned = torch.where(kept[:, None], logits[:, 1:], PRUNED)
    return torch.cat([logits[:, :1], pruned], dim=1)


def predict_among(gpt: Gpt, hidden: Tensor, candidates: Tensor) -> Tensor:
    """Logits that the decoder's own norm and head give candidates, `(tokens, size)`, from states `(tokens, dim)`."""
    return gpt.parts.predict(gpt.normalise(hidden), Among(gpt.model.get_output_embeddings(), candidates))


def ranks(first: Tensor, tokens: Tensor) -> Tensor:
    """How many tokens the first exit finds likelier than the wanted one, int64 `(tokens,)`.

    Example:
        >>> ranks(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]))
        tensor([1])
    """
    return (first > first.gather(1, tokens[:, None])).sum(1)


def size_for(found: Tensor, share: float) -> int:
    """The fewest candidates among which a share of the wanted tokens are, from their `ranks`.

    Example:
        >>> [size_for(torch.tensor([0, 0, 4, 9]), share) for share in (0.5, 0.75, 1.0)]
        [1, 5, 10]
    """
    at = max(int(-(-share * len(found) // 1)) - 1, 0)
    return int(found.sort().values[at]) + 1
