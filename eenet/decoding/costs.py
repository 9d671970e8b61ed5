"""What decoding costs in MACs, prompt and generated tokens apart, from the project's one counter."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from eenet.backbones.gpt import Gpt
from eenet.costs import count_macs
from eenet.decoding.cache import LayerCache, Slot, read_before, write_keys


@dataclass(frozen=True)
class DecoderCosts:
    """MACs of the parts of a decoder whose layers are alike; an estimate where a family mixes dense and sparse layers.

    Attributes:
        embed: Of a token before the first layer.
        layer: Of a token in one layer, without what grows with the context.
        attention: Of a pair of a token and one that it may see, in one layer.
        key_values: Of a token's keys and values in one layer, when nothing else of the layer runs.
        head: Of a token in the final norm and the language-model head.
    """

    embed: int
    layer: int
    attention: int
    key_values: int
    head: int

    def prefill(self, layers: int, tokens: int) -> int:
        """MACs of a prompt through some layers, with the head on its last token.

        Attention counts every pair of tokens, as the counter does; a kernel that skips the future does half of it.
        """
        return tokens * self.embed + layers * (tokens * self.layer + tokens**2 * self.attention) + self.head

    def decode(self, layers: int, context: int) -> int:
        """MACs of one token through some layers and the head; it sees `context` tokens, itself included."""
        return self.embed + layers * (self.layer + context * self.attention) + self.head


@torch.no_grad()
def count_decoder(gpt: Gpt) -> DecoderCosts:
    """Count the parts of a decoder, its first layer for all."""
    layer = gpt.layers[0]
    device = next(layer.parameters()).device

    def run(tokens: int) -> tuple[int, int, int]:
        ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
        embed, state = count_macs(gpt.embed, {"input_ids": ids})
        macs, _ = count_macs(gpt.run_stage, 0, state)
        _, calls = gpt.parts.record(ids, torch.ones_like(ids), read_before(0))
        slot = Slot(LayerCache(1), None, 0)
        return embed, macs, count_macs(write_keys, calls[0], layer, state["hidden"], slot)[0]

    (embed, one, key_values), (_, two, _) = run(1), run(2)
    attention = (two - 2 * one) // 2
    hidden = torch.zeros(1, gpt.feature_dims[0], dtype=next(layer.parameters()).dtype, device=device)
    head, _ = count_macs(lambda rows: gpt.head(gpt.normalise(rows)), hidden)
    return DecoderCosts(embed, one - attention, attention, key_values, head)


@dataclass
class Usage:
    """What one sequence has cost.

    Attributes:
        prefill: MACs of the prompt and of the head on its last token.
        decode: MACs of the later tokens through the layers that ran for them and the head.
        fill: MACs of the keys and values of layers that tokens skipped, beside `decode`.
        rule: MACs of the exit rule, beside `decode`.
        layers: Layers that ran for each token whose next token was predicted: the prompt's last one, then the
            generated ones.
    """

    prefill: int = 0
    decode: int = 0
    fill: int = 0
    rule: int = 0
    layers: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All MACs."""
        return self.prefill + self.decode + self.fill + self.rule


def mean_layers(usages: Sequence[Usage]) -> float:
    """Layers per generated token that was read, over all sequences; what the prompts ran is not among them.

    Where no generated token was read, the layers of the prompts' last tokens.

    Example:
        >>> mean_layers([Usage(layers=[4, 2, 3]), Usage(layers=[4])])
        2.5
    """
    counts = [layers for usage in usages for layers in usage.layers[1:]] or [usage.layers[0] for usage in usages]
    return sum(counts) / len(counts)
