"""How generation with trained exits compares with the full model's text, prompt by prompt."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from eenet.decoding.costs import Usage
from eenet.decoding.executor import Executor, pad_left
from eenet.decoding.exits import Fill
from eenet.decoding.generation import generate
from eenet.decoding.measures import text_scores
from eenet.decoding.network import DecoderNetwork
from eenet.decoding.plans import full_plan
from eenet.decoding.routed import RoutedExecutor, follow
from eenet.decoding.sequences import Sequences
from eenet.policies.base import Policy

Row = dict[str, Any]
"""What is known of one prompt, as plain values."""

Decode = Callable[[list[int]], str]
"""Text of token numbers."""


def full_rows(network: DecoderNetwork, sequences: Sequences, batch: Sequence[int], decode: Decode) -> list[Row]:
    """What the full model, without any exit, generates after some prompts, and how it follows its own text.

    Args:
        network: The decoder, whose exits are not used.
        sequences: The prompts.
        batch: Which of them.
        decode: Makes text of tokens.
    """
    gpt = network.backbone
    return _judge(Executor(gpt, full_plan(gpt.num_stages), network.decoder_costs), sequences, batch, decode, None)


def routed_rows(
    network: DecoderNetwork,
    policy: Policy,
    sequences: Sequences,
    batch: Sequence[int],
    decode: Decode,
    full: Sequence[Row],
    fill: Fill = "project",
) -> list[Row]:
    """What a network generates after some prompts when tokens leave as a policy says, and how it follows the full text.

    Args:
        network: The decoder with its exits, in evaluation mode.
        policy: Decides who leaves.
        sequences: The prompts.
        batch: Which of them.
        decode: Makes text of tokens.
        full: From `full_rows`, of the same prompts.
        fill: Where the keys and values of skipped layers come from.

    Returns:
        `text` and `tokens`, the text generated; `layers`, run for its tokens but the first; `macs` of those, fill and
        exit rule included; `rougeL` against the reference and `rougeL_full` against the full text, F-measures; and,
        while reading the full model's tokens but the first, `nll`, summed, in nats, `agreeing` and `followed`, how many
        of them are the most likely token, of how many.
    """
    return _judge(RoutedExecutor(network, policy, fill), sequences, batch, decode, full)


def _judge(
    executor: Executor, sequences: Sequences, batch: Sequence[int], decode: Decode, full: Sequence[Row] | None
) -> list[Row]:
    device = next(executor.gpt.parameters()).device
    prompts = [sequences.prompts[row] for row in batch]
    inputs = {name: value.to(device) for name, value in pad_left(prompts).items()}
    generated = generate(executor, inputs, sequences.new_tokens, sequences.stop)
    rows = [
        _row(executor, tokens, usage, decode, sequences.references[row])
        for row, tokens, usage in zip(batch, generated.tokens, generated.usage, strict=True)
    ]
    full = rows if full is None else full
    texts = [whole(row["tokens"], sequences) for row in full]
    for row, other, (nll, hit) in zip(rows, full, follow(executor, prompts, texts), strict=True):
        row["rougeL_full"] = text_scores(row["text"], other["text"])["rougeL"] if other["text"].strip() else 1.0
        row |= {"nll": nll[1:].sum().item(), "agreeing": int(hit[1:].sum()), "followed": len(hit) - 1}
    return rows


def _row(executor: Executor, tokens: list[int], usage: Usage, decode: Decode, reference: str) -> Row:
    text = decode(tokens)
    return {
        "text": text,
        "tokens": tokens,
        "layers": usage.layers[1:],
        "macs": usage.total - usage.prefill,
        "rougeL": text_scores(text, reference)["rougeL"],
    }


def whole(tokens: list[int], sequences: Sequences) -> list[int]:
    """Generated tokens with the stop token that ended them, where one did."""
    return tokens + list(sequences.stop[:1]) if len(tokens) < sequences.new_tokens else tokens


def summarise_rows(rows: Sequence[Row], full: Sequence[Row], num_layers: int) -> dict[str, float]:
    """Figures of a set of prompts.

    Args:
        rows: From `routed_rows`.
        full: From `full_rows`, of the same prompts.
        num_layers: Of the decoder.

    Returns:
        Of the tokens generated but the first: `layers_mean` and `layers_fraction`, per token, `macs_mean`, per token,
        and `macs_fraction`, of the full model's on its own text. Of the full model's tokens but the first: `agreement`,
        a share, and `perplexity`. Over prompts: the mean `rougeL_full` and `rougeL`, and the share of `same_text`.
    """
    layers = [count for row in rows for count in row["layers"]]
    followed = sum(row["followed"] for row in rows)
    mean = sum(layers) / max(len(layers), 1)
    macs = _macs_per_token(rows)
    return {
        "layers_mean": mean,
        "layers_fraction": mean / num_layers,
        "macs_mean": macs,
        "macs_fraction": macs / max(_macs_per_token(full), 1),
        "agreement": sum(row["agreeing"] for row in rows) / max(followed, 1),
        "perplexity": math.exp(sum(row["nll"] for row in rows) / max(followed, 1)),
        "rougeL_full": sum(row["rougeL_full"] for row in rows) / len(rows),
        "rougeL": sum(row["rougeL"] for row in rows) / len(rows),
        "same_text": sum(row["tokens"] == other["tokens"] for row, other in zip(rows, full, strict=True)) / len(rows),
    }


def _macs_per_token(rows: Sequence[Row]) -> float:
    return sum(row["macs"] for row in rows) / max(sum(len(row["layers"]) for row in rows), 1)


def split_batches(count: int, size: int) -> Iterator[range]:
    """Numbers below `count`, some at a time.

    Example:
        >>> list(split_batches(5, 2))
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    return (range(start, min(start + size, count)) for start in range(0, count, size))


@torch.no_grad()
def full_texts(network: DecoderNetwork, sequences: Sequences, batch: Sequence[int]) -> list[list[int]]:
    """Tokens that the full model generates greedily after some prompts, a stop token at the end included."""
    gpt = network.backbone
    device = next(gpt.parameters()).device
    executor = Executor(gpt, full_plan(gpt.num_stages), network.decoder_costs)
    prompts = pad_left([sequences.prompts[row] for row in batch])
    inputs = {name: value.to(device) for name, value in prompts.items()}
    return [whole(tokens, sequences) for tokens in generate(executor, inputs, sequences.new_tokens, sequences.stop)[0]]
