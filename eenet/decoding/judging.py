"""How generation with trained exits compares with the full model's text, prompt by prompt."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

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


def full_executor(network: DecoderNetwork) -> Executor:
    """Runs the full model, without any exit."""
    gpt = network.backbone
    return Executor(gpt, full_plan(gpt.num_stages), network.decoder_costs)


def full_rows(network: DecoderNetwork, sequences: Sequences, batch: Sequence[int], decode: Decode) -> list[Row]:
    """What the full model generates after some prompts, and how it follows its own text; see `routed_rows`."""
    executor = full_executor(network)
    rows = generated_rows(executor, sequences, batch, decode)
    return follow_full(executor, sequences, batch, rows, rows)


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
        The rows of `generated_rows`, with what `follow_full` adds.
    """
    executor = RoutedExecutor(network, policy, fill)
    rows = generated_rows(executor, sequences, batch, decode)
    return follow_full(executor, sequences, batch, rows, full)


@torch.no_grad()
def generated_rows(executor: Executor, sequences: Sequences, batch: Sequence[int], decode: Decode) -> list[Row]:
    """What an executor generates greedily after some prompts.

    Returns:
        For each prompt its `text` and `tokens`; `layers`, run for the tokens but the first; `macs` of those, fill and
        exit rule included; and `rougeL` against the reference, an F-measure.
    """
    prompts = _inputs(executor, sequences, batch)
    generated = generate(executor, prompts, sequences.new_tokens, sequences.stop)
    return [
        _row(tokens, usage, decode, sequences.references[row])
        for row, tokens, usage in zip(batch, generated.tokens, generated.usage, strict=True)
    ]


def follow_full(
    executor: Executor, sequences: Sequences, batch: Sequence[int], rows: Sequence[Row], full: Sequence[Row]
) -> list[Row]:
    """Add to rows how an executor predicts the full model's tokens while it reads them.

    Returns:
        The rows with `rougeL_full`, the overlap of both texts, and, over the full model's tokens but the first, `nll`,
        summed, in nats, and `agreeing` and `followed`, how many of them are the most likely token, of how many.
    """
    texts = [whole(row["tokens"], sequences) for row in full]
    judged = follow(executor, [sequences.prompts[row] for row in batch], texts)
    return [
        {
            **row,
            "rougeL_full": overlap(row["text"], other["text"]),
            "nll": nll[1:].sum().item(),
            "agreeing": int(hit[1:].sum()),
            "followed": len(hit) - 1,
        }
        for row, other, (nll, hit) in zip(rows, full, judged, strict=True)
    ]


def overlap(text: str, full: str) -> float:
    """ROUGE-L of a text against the full model's, an F-measure; 1 for equal ones, empty ones too.

    Example:
        >>> overlap("", ""), overlap("a b c", "a b c d e")
        (1.0, 0.75)
    """
    return 1.0 if text.strip() == full.strip() else text_scores(text, full)["rougeL"]


def _inputs(executor: Executor, sequences: Sequences, batch: Sequence[int]) -> dict[str, Tensor]:
    device = next(executor.gpt.parameters()).device
    return {name: value.to(device) for name, value in pad_left([sequences.prompts[row] for row in batch]).items()}


def _row(tokens: list[int], usage: Usage, decode: Decode, reference: str) -> Row:
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


def summarise_rows(rows: Sequence[Row], full: Sequence[Row], num_layers: int) -> dict[str, float | None]:
    """Figures of a set of prompts.

    Args:
        rows: From `routed_rows`.
        full: From `full_rows`, of the same prompts.
        num_layers: Of the decoder.

    Returns:
        Of the tokens generated but the first: `layers_mean` and `layers_fraction`, per token, `macs_mean`, per token,
        and `macs_fraction`, of the full model's on its own text. Of the full model's tokens but the first: `agreement`,
        a share, and `perplexity`; `None` where no text has a second token. Over prompts: the mean `rougeL_full` and
        `rougeL`, and the share of `same_text`.
    """
    layers = [count for row in rows for count in row["layers"]]
    followed = sum(row["followed"] for row in rows)
    mean = _ratio(sum(layers), len(layers))
    macs, full_macs = _macs_per_token(rows), _macs_per_token(full)
    nll = _ratio(sum(row["nll"] for row in rows), followed)
    return {
        "layers_mean": mean,
        "layers_fraction": None if mean is None else mean / num_layers,
        "macs_mean": macs,
        "macs_fraction": None if macs is None else _ratio(macs, full_macs),
        "agreement": _ratio(sum(row["agreeing"] for row in rows), followed),
        "perplexity": None if nll is None else math.exp(nll),
        "rougeL_full": sum(row["rougeL_full"] for row in rows) / len(rows),
        "rougeL": sum(row["rougeL"] for row in rows) / len(rows),
        "same_text": sum(row["tokens"] == other["tokens"] for row, other in zip(rows, full, strict=True)) / len(rows),
    }


def _macs_per_token(rows: Sequence[Row]) -> float | None:
    return _ratio(sum(row["macs"] for row in rows), sum(len(row["layers"]) for row in rows))


def _ratio(total: float, count: float | None) -> float | None:
    return total / count if count else None


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
    executor = full_executor(network)
    generated = generate(executor, _inputs(executor, sequences, batch), sequences.new_tokens, sequences.stop)
    return [whole(tokens, sequences) for tokens in generated.tokens]
