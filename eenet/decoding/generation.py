"""Generating text token by token: greedy or sampled, streamed, finished sequences dropped from the batch."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eenet.decoding.costs import Usage
from eenet.decoding.executor import Executor
from eenet.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Attributes:
        temperature: Divides the logits; 0 picks the most likely token.
        top_p: Draw only from the most likely tokens that together have this probability (nucleus sampling, Holtzman
            et al. 2020).
        seed: Of the draws; each sequence has its own, so that the others in the batch make no difference to it.

    Raises:
        UserError: A negative temperature, or `top_p` outside (0, 1].
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError("temperature", self.temperature, "must be at least 0; 0 picks the most likely token")
        if not 0 < self.top_p <= 1:
            raise UserError("top_p", self.top_p, "is a probability above 0 and at most 1; 1 draws from all tokens")


class Generated(NamedTuple):
    """What was generated, in the order of the prompts.

    Attributes:
        tokens: The new tokens of each sequence; a stop token is not among them.
        usage: What each sequence has cost.
    """

    tokens: list[list[int]]
    usage: list[Usage]


def stream(
    executor: Executor,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int = 128,
    stop: Collection[int] = (),
    sampling: Sampling = Sampling(),
) -> Iterator[list[tuple[int, int]]]:
    """Generate and hand out every token as soon as it is known.

    A sequence ends at a stop token, after `max_new_tokens`, or where the longest sequence fills the model's context.

    Args:
        executor: Runs the layers; its `usage` grows as tokens are read.
        inputs: Prompts, `input_ids` and `attention_mask`, padded on the left (`pad_left`).
        max_new_tokens: The most tokens for each sequence.
        stop: Token numbers that end a sequence; they are not handed out.
        sampling: How tokens are picked.

    Yields:
        After each step, the prompt's number and the new token of every sequence that has not ended.

    Raises:
        UserError: No token is asked for, or a prompt that cannot be read.
    """
    if max_new_tokens < 1:
        raise UserError("max_new_tokens", max_new_tokens, "must be at least 1")
    hidden = executor.prefill(inputs)[:, -1]
    rows = list(range(len(hidden)))
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in rows]
    for left in reversed(range(min(max_new_tokens, executor.room + 1))):
        with torch.no_grad():
            tokens = pick(executor.logits(hidden), sampling, [generators[row] for row in rows])
        numbers = tokens.tolist()
        running = [place for place, number in enumerate(numbers) if number not in stop]
        if len(running) < len(rows):
            if not running:
                return
            executor.keep(running)
            rows = [rows[place] for place in running]
            tokens = tokens[torch.tensor(running, device=tokens.device)]
        yield [(row, numbers[place]) for row, place in zip(rows, running, strict=True)]
        if left:
            hidden = executor.step(tokens)


def generate(
    executor: Executor,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int = 128,
    stop: Collection[int] = (),
    sampling: Sampling = Sampling(),
) -> Generated:
    """Generate whole sequences; see `stream`."""
    tokens: list[list[int]] = [[] for _ in inputs["input_ids"]]
    for step in stream(executor, inputs, max_new_tokens, stop, sampling):
        for row, token in step:
            tokens[row].append(token)
    return Generated(tokens, executor.usage)


def pick(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """Pick a token for each row of logits.

    Args:
        logits: `(batch, vocabulary)`.
        sampling: How.
        generators: One for each row, on the CPU.

    Returns:
        Token numbers, `(batch,)`.

    Example:
        >>> pick(torch.tensor([[0.0, 2.0, 1.0]]), Sampling(), [])
        tensor([1])
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    draws = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    probabilities, order = (logits.double() / sampling.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    cumulative = probabilities.cumsum(dim=-1)
    nucleus = probabilities * (cumulative - probabilities < sampling.top_p)
    bounds = nucleus.cumsum(dim=-1)
    heights = draws.to(logits.device).unsqueeze(1) * bounds[:, -1:]
    places = torch.searchsorted(bounds, heights, right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(1, places).squeeze(1)
