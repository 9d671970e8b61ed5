"""Heads of a decoder's exits: what reads a hidden state before any norm and predicts the next token."""

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from eenet.backbones.gpt import Gpt
from eenet.errors import UserError
from eenet.inference_modules.base import InferenceModule


class Among(nn.Module):
    """A map to the vocabulary that computes for each token the logits of its candidates alone.

    Args:
        head: The map.
        candidates: Token numbers, `(tokens, size)`.
    """

    def __init__(self, head: nn.Module, candidates: Tensor) -> None:
        super().__init__()
        self._head, self.candidates = [head], candidates

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits `(1, tokens, size)` from hidden states `(1, tokens, dim)`."""
        head: Any = self._head[0]
        logits = (head.weight[self.candidates] @ hidden[0].unsqueeze(-1)).squeeze(-1)
        if head.bias is not None:
            logits = logits + head.bias[self.candidates]
        return logits.unsqueeze(0)


class LanguageHead(InferenceModule):
    """A norm of the exit's own, which starts as the decoder's last one, and a map to the vocabulary.

    Args:
        gpt: The decoder, with its language-model head (`task="tokens"`).
    """

    def __init__(self, gpt: Gpt) -> None:
        super().__init__()
        self.norm = nn.Identity() if gpt.norm is None else copy.deepcopy(gpt.norm).requires_grad_(True)
        self._gpt = [gpt]  # in a list: neither saved nor trained

    @abstractmethod
    def among(self, features: Tensor, candidates: Tensor) -> Tensor:
        """As `forward`, of candidates alone: logits `(tokens, size)` of token numbers `(tokens, size)`."""


class TiedHead(LanguageHead):
    """An exit that predicts with the decoder's own head, which it shares and does not train.

    With a rank, the hidden state is moved by a low-rank map before the norm: the affine translator of the tuned lens
    (Belrose et al. 2023), of low rank and without bias. It starts at zero, so that the untrained exit is what the
    decoder's last norm and head make of an earlier layer.

    Args:
        gpt: The decoder, with its language-model head.
        rank: Of the low-rank map; 0 for none.

    Raises:
        UserError: A rank that is negative or larger than the hidden state's width.

    Example:
        >>> small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 11}
        >>> head = TiedHead(Gpt(task="tokens", overrides=small), rank=2)
        >>> head(torch.zeros(5, 8)).shape, sum(weight.numel() for weight in head.parameters())
        (torch.Size([5, 11]), 48)
    """

    def __init__(self, gpt: Gpt, rank: int = 0) -> None:
        super().__init__(gpt)
        dim = gpt.feature_dims[-1]
        if not 0 <= rank <= dim:
            raise UserError("inference_module.rank", rank, f"is at least 0 and at most the hidden state's width, {dim}")
        self.adapter: nn.Sequential | None = None
        if rank:
            up = nn.Linear(rank, dim, bias=False)
            nn.init.zeros_(up.weight)
            self.adapter = nn.Sequential(nn.Linear(dim, rank, bias=False), up)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(tokens, vocabulary)` from hidden states `(tokens, dim)`."""
        return self._gpt[0].head(self._normed(features))

    def among(self, features: Tensor, candidates: Tensor) -> Tensor:
        """As for any language head."""
        gpt = self._gpt[0]
        return gpt.parts.predict(self._normed(features), Among(gpt.model.get_output_embeddings(), candidates))

    def _normed(self, features: Tensor) -> Tensor:
        hidden = self.norm(features if self.adapter is None else features + self.adapter(features))
        projection = self._gpt[0].projection
        return hidden if projection is None else projection(hidden)


class OwnHead(LanguageHead):
    """An exit with a norm and a map to the vocabulary of its own, which starts as the decoder's.

    Args:
        gpt: The decoder, with its language-model head.
    """

    def __init__(self, gpt: Gpt) -> None:
        super().__init__(gpt)
        own = gpt.model.get_output_embeddings()
        weight: Tensor = own.weight.detach()
        if gpt.projection is not None:
            weight = weight @ gpt.projection.weight.detach()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=own.bias is not None)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            if own.bias is not None:
                self.linear.bias.copy_(own.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(tokens, vocabulary)` from hidden states `(tokens, dim)`."""
        return self._gpt[0].parts.predict(self.norm(features), self.linear)

    def among(self, features: Tensor, candidates: Tensor) -> Tensor:
        """As for any language head."""
        return self._gpt[0].parts.predict(self.norm(features), Among(self.linear, candidates))
