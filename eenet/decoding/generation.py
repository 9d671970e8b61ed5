"""Generating text token by token: greedy or sampled, streamed, finished sequences dropped from the batch."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eenet.backbones.gpt import Gpt
from eenet.decoding.costs import Usage
from eenet.decoding.executor import Executor
from eenet.errors import UserError

_OF_ROWS = ("prompt_ignore_length", "encoder_input_ids")
"""Attributes of logits processors that have an entry for each row of the batch."""


@dataclass(frozen=True)
class Rules:
    """How the next token is picked and when a text ends, in the terms of `transformers`.

    Attributes:
        processors: Change logits, `(batch, vocabulary)`, of texts, `(batch, tokens)`, before a token is picked.
        criteria: Say which texts end with the token they have just got.
        draw: Draw the token; otherwise the most likely one is taken.
        seed: Of the draws; each sequence has its own, so that the others in the batch make no difference to it.
        stop: Token numbers that end a text and are not part of it.
        max_new_tokens: The most tokens for each prompt, `None` for what the caller says.
    """

    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()
    criteria: Sequence[Callable[..., Tensor]] = ()
    draw: bool = False
    seed: int = 0
    stop: tuple[int, ...] = ()
    max_new_tokens: int | None = None

    def of_rows(self, rows: Sequence[int]) -> "Rules":
        """The same for some rows of the batch alone: penalties of repetition know each row's padding, or prompt."""

        def narrowed(process: Any) -> Any:
            known = {name: vars(process)[name] for name in _OF_ROWS if isinstance(vars(process).get(name), Tensor)}
            found = copy.copy(process) if known else process
            vars(found).update({name: value[list(rows)] for name, value in known.items()})
            return found

        return replace(self, processors=[narrowed(process) for process in self.processors])

    @classmethod
    def sampled(cls, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> "Rules":
        """Draw from the most likely tokens that together have a probability (nucleus sampling, Holtzman et al. 2020).

        Args:
            temperature: Divides the logits; 0 picks the most likely token.
            top_p: The probability.
            seed: Of the draws.

        Raises:
            UserError: A negative temperature, or `top_p` outside (0, 1].
        """
        check_sampling(temperature, top_p)
        if temperature == 0:
            return cls(seed=seed)
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        warpers = [TemperatureLogitsWarper(float(temperature)), TopPLogitsWarper(float(top_p))]
        return cls(warpers[: 2 if top_p < 1 else 1], draw=True, seed=seed)


GREEDY = Rules()
"""The most likely token each time."""


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise a `UserError` for a negative temperature, or a `top_p` outside (0, 1]."""
    if temperature < 0:
        raise UserError("temperature", temperature, "must be at least 0; 0 picks the most likely token")
    if not 0 < top_p <= 1:
        raise UserError("top_p", top_p, "is a probability above 0 and at most 1; 1 draws from all tokens")


def model_rules(gpt: Gpt, inputs: Mapping[str, Tensor], tokenizer: Any = None, seed: int = 0, **changes: Any) -> Rules:
    """What `model.generate` would go by: the model's generation settings, and changes of them.

    Repetition penalties, suppressed tokens, temperature, top-k, stop strings and the like are the library's own logits
    processors and stopping criteria, made by `generate` itself.

    Args:
        gpt: The decoder.
        inputs: The prompts, `input_ids` and `attention_mask`, padded on the left.
        tokenizer: Needed for stop strings.
        seed: Of the draws.
        changes: Of the settings, such as `max_new_tokens` or `do_sample`; `None` leaves a setting as it is.

    Raises:
        UserError: Settings that need more than one text for each prompt or the model itself, such as beams, or that
            the library refuses.
    """
    from transformers.generation import GenerationMode, StoppingCriteriaList, StopStringCriteria

    def rules(
        model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **_: Any
    ) -> Rules:
        mode = generation_config.get_generation_mode()
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise UserError("generation_config", mode.value, "layers are left out of greedy search and sampling alone")
        if generation_config.num_return_sequences not in (None, 1):
            raise UserError("num_return_sequences", generation_config.num_return_sequences, "must be 1")
        if generation_config.guidance_scale not in (None, 1):
            raise UserError("guidance_scale", generation_config.guidance_scale, "runs the whole model; leave it out")
        stop = generation_config.eos_token_id
        return Rules(
            logits_processor,
            stopping_criteria,
            generation_config.do_sample or False,
            seed,
            () if stop is None else tuple(stop) if isinstance(stop, list) else (stop,),
            generation_config.max_length - input_ids.shape[1],
        )

    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("max_new_tokens", 1) < 1:
        raise UserError("max_new_tokens", given["max_new_tokens"], "must be at least 1")
    settings = gpt.model.generation_config
    usual, ends = settings.stop_strings, given.get("stop_strings") or settings.stop_strings
    criteria = None
    try:
        if tokenizer is not None and ends:  # a tokenizer that `generate` is given does not reach its stopping criteria
            criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, ends)])
            given.pop("stop_strings", None)
            settings.stop_strings = None
        return gpt.model.generate(**inputs, custom_generate=rules, stopping_criteria=criteria, **given)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError("generation_config", given, f"transformers refuses it: {error}") from error
    finally:
        settings.stop_strings = usual


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
    rules: Rules = GREEDY,
) -> Iterator[list[tuple[int, int]]]:
    """Generate and hand out every token as soon as it is known.

    A sequence ends at a stop token, where the rules say so, after `max_new_tokens`, or where the longest sequence
    fills the model's context.

    Args:
        executor: Runs the layers; its `usage` grows as tokens are read.
        inputs: Prompts, `input_ids` and `attention_mask`, padded on the left (`pad_left`).
        max_new_tokens: The most tokens for each sequence, where the rules have no number.
        stop: Token numbers that end a sequence, beside those of the rules; they are not handed out.
        rules: How tokens are picked; by default the most likely one.

    Yields:
        After each step, the prompt's number and the new token of every sequence that has not ended.

    Raises:
        UserError: No token is asked for, or a prompt that cannot be read.
    """
    most = max_new_tokens if rules.max_new_tokens is None else rules.max_new_tokens
    if most < 1:
        raise UserError("max_new_tokens", most, "must be at least 1")
    hidden = executor.prefill(inputs)[:, -1]
    texts, stop = inputs["input_ids"].to(hidden.device), {*stop, *rules.stop}
    rows = list(range(len(hidden)))
    generators = [torch.Generator().manual_seed(rules.seed + row) for row in rows]
    for left in reversed(range(min(most, executor.room + 1))):
        with torch.no_grad():
            tokens = pick(executor.logits(hidden), rules, [generators[row] for row in rows], texts)
        numbers = tokens.tolist()
        yield [(row, number) for row, number in zip(rows, numbers, strict=True) if number not in stop]
        texts = torch.cat([texts, tokens.unsqueeze(1)], dim=1)
        ended = [any(done) for done in zip(*(rule(texts, None).tolist() for rule in rules.criteria), strict=True)]
        running = [place for place, number in enumerate(numbers) if number not in stop and not (ended and ended[place])]
        if not (left and running):
            return
        if len(running) < len(rows):
            executor.keep(running)
            index = torch.tensor(running, device=tokens.device)
            rows, tokens, texts = [rows[place] for place in running], tokens[index], texts[index]
            rules = rules.of_rows(running)
        hidden = executor.step(tokens)


def generate(
    executor: Executor,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int = 128,
    stop: Collection[int] = (),
    rules: Rules = GREEDY,
) -> Generated:
    """Generate whole sequences; see `stream`."""
    tokens: list[list[int]] = [[] for _ in inputs["input_ids"]]
    for step in stream(executor, inputs, max_new_tokens, stop, rules):
        for row, token in step:
            tokens[row].append(token)
    return Generated(tokens, executor.usage)


def pick(logits: Tensor, rules: Rules, generators: list[torch.Generator], texts: Tensor) -> Tensor:
    """Pick a token for each row of logits.

    Args:
        logits: `(batch, vocabulary)`.
        rules: How.
        generators: One for each row, on the CPU.
        texts: What was read and picked before, `(batch, tokens)`, padding included.

    Returns:
        Token numbers, `(batch,)`.

    Example:
        >>> pick(torch.tensor([[0.0, 2.0, 1.0]]), Rules(), [], torch.tensor([[2]]))
        tensor([1])
    """
    for process in rules.processors:
        logits = process(texts, logits)
    if not rules.draw:
        return logits.argmax(dim=-1)
    draws = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    return draw(probabilities(logits), draws).to(logits.device)


def probabilities(logits: Tensor) -> Tensor:
    """Their softmax in double precision on the CPU, so that draws are the same on every device."""
    return logits.cpu().double().softmax(dim=-1)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw numbers in proportion to weights.

    Args:
        weights: Not negative, `(batch, numbers)`.
        uniform: One for each row, from [0, 1), `(batch,)`.

    Returns:
        `(batch,)`.

    Example:
        >>> draw(torch.tensor([[1.0, 0.0, 3.0]]).repeat(2, 1), torch.tensor([0.2, 0.3])).tolist()
        [0, 2]
    """
    bounds = weights.cumsum(dim=-1)
    heights = uniform.unsqueeze(1) * bounds[:, -1:]
    return torch.searchsorted(bounds, heights, right=True).clamp(max=weights.shape[-1] - 1).squeeze(1)
