"""Generating the full model's text, several tokens a pass: drafted ones are kept as long as they are what it says."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eenet.decoding.drafting import SpeculativeExecutor
from eenet.decoding.generation import GREEDY, Rules, draw, pick, probabilities
from eenet.errors import UserError

_OF_A_BATCH = (
    "EncoderNoRepeatNGramLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
)
"""Logits processors that know rows by their place in the batch, or count how often they were asked."""


def agreed(drafted: Sequence[int], best: Sequence[int]) -> list[int]:
    """What a pass of greedy search wins: the drafted tokens that are right, and the one that follows them.

    Args:
        drafted: Token numbers.
        best: The full model's, one more.

    Example:
        >>> agreed([5, 9, 4], [5, 8, 4, 1]), agreed([5], [5, 8]), agreed([], [3])
        ([5, 8], [5, 8], [3])
    """
    right = next((place for place, token in enumerate(drafted) if token != best[place]), len(drafted))
    return list(best[: right + 1])


def accepted(
    drafted: Sequence[int], drafts: Sequence[Tensor], targets: Sequence[Tensor], uniform: Callable[[], Tensor]
) -> list[int]:
    """What a pass of sampling wins, distributed as the full model alone would draw it.

    A token `x` is kept with probability `min(1, p(x) / q(x))`; in the place of the first that is not, one is drawn in
    proportion to `max(p - q, 0)` (speculative sampling, Leviathan et al. 2023, arXiv 2211.17192).

    Args:
        drafted: Token numbers, each drawn from its draft.
        drafts: `q`, probabilities of the vocabulary for each of them, `(vocabulary,)`.
        targets: `p`, of the full model, one more.
        uniform: Draws from [0, 1), `()`.

    Example:
        >>> sure = torch.eye(3)
        >>> accepted([0, 1], sure[[0, 1]], sure[[0, 2, 1]], lambda: torch.tensor(0.5))
        [0, 2]
    """
    for place, (token, draft, target) in enumerate(zip(drafted, drafts, targets, strict=False)):
        if uniform() * draft[token] >= target[token]:
            left = (target - draft).clamp(min=0)
            return [*drafted[:place], int(draw(left[None], uniform()[None]))]
    return [*drafted, int(draw(targets[-1][None], uniform()[None]))]


def stream_drafted(
    executor: SpeculativeExecutor,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int = 128,
    stop: Collection[int] = (),
    rules: Rules = GREEDY,
) -> Iterator[list[tuple[int, int]]]:
    """Generate what the full model does and hand out the tokens of every pass as soon as they are known.

    Greedy text is the full model's but for the rounding of a batched pass; sampled text has its distribution. With a
    fixed number of drafts the draws of a sequence do not depend on the others but where the longest nears the end of
    the context.

    Args:
        executor: Drafts and verifies.
        inputs: Prompts, `input_ids` and `attention_mask`, padded on the left (`pad_left`).
        max_new_tokens: The most tokens for each sequence, where the rules have no number.
        stop: Token numbers that end a sequence, beside those of the rules; they are not handed out.
        rules: How tokens are picked, of drafts and of the full model alike; stopping criteria are asked after each
            token.

    Yields:
        After each pass, the prompt's number and the new tokens of every sequence that has not ended, in order.

    Raises:
        UserError: No token is asked for, a prompt that cannot be read, or rules that know rows by their place.
    """
    most = max_new_tokens if rules.max_new_tokens is None else rules.max_new_tokens
    if most < 1:
        raise UserError("max_new_tokens", most, "must be at least 1")
    for process in rules.processors:
        if type(process).__name__ in _OF_A_BATCH:
            raise UserError("generation_config", type(process).__name__, "cannot be kept where tokens are drafted")
    hidden = executor.prefill(inputs)[:, -1]
    most, stop = min(most, executor.room + 1), {*stop, *rules.stop}
    ids = inputs["input_ids"].to(hidden.device)
    generators = [torch.Generator().manual_seed(rules.seed + row) for row in range(len(ids))]
    first = pick(executor.logits(hidden), rules, generators, ids).tolist()
    rows = [_Row(row, text, [], rules.of_rows([row]), generators[row]) for row, text in enumerate(ids)]
    won = [_Won([token], 0) for token in first]
    for passes in range(most):
        taken = [_take(row, tokens, most, stop) for row, (tokens, _) in zip(rows, won, strict=True)]
        if passes:
            executor.accept([len(tokens) for tokens, _ in taken], [right for _, right in won])
        new = zip(rows, taken, strict=True)
        yield [(row.number, token) for row, (tokens, _) in new for token in tokens if token not in stop]
        running = [place for place, (_, ended) in enumerate(taken) if not ended]
        if not running:
            return
        if len(running) < len(rows):
            executor.keep(running)
            rows = [rows[place] for place in running]
        useful = most - 1 - min(len(row.tokens) for row in rows)
        won = _pass(executor, rows, min(executor.next_drafts(), useful, executor.room - 1))


class _Row(NamedTuple):
    """A sequence that has not ended.

    Attributes:
        number: Of the prompt.
        prompt: Its tokens, padding included.
        tokens: The new ones, all handed out.
        rules: How its tokens are picked.
        generator: Of its draws.
    """

    number: int
    prompt: Tensor
    tokens: list[int]
    rules: Rules
    generator: torch.Generator

    def scores(self, logits: Tensor, drafted: Sequence[int]) -> Tensor:
        """What the processors make of logits `(vocabulary,)` behind the tokens so far and some drafted ones."""
        if not self.rules.processors:
            return logits
        text = torch.cat([self.prompt, self.prompt.new_tensor([*self.tokens, *drafted])])[None]
        scores = logits[None]
        for process in self.rules.processors:
            scores = process(text, scores)
        return scores[0]

    def uniform(self) -> Tensor:
        """A draw from [0, 1)."""
        return torch.rand((), generator=self.generator, dtype=torch.float64)


class _Won(NamedTuple):
    """The tokens that a pass wins for a sequence, and how many of them were drafted."""

    tokens: list[int]
    right: int


def _take(row: _Row, won: Sequence[int], most: int, stop: Collection[int]) -> tuple[list[int], bool]:
    """Put new tokens behind a text up to where it ends; says which, and whether it ends there."""
    for count, token in enumerate(won, start=1):
        row.tokens.append(token)
        if token in stop or len(row.tokens) >= most or _ends(row):
            return list(won[:count]), True
    return list(won), False


def _ends(row: _Row) -> bool:
    if not row.rules.criteria:
        return False
    text = torch.cat([row.prompt, row.prompt.new_tensor(row.tokens)])[None]
    return any(bool(rule(text, None)) for rule in row.rules.criteria)


@torch.no_grad()
def _pass(executor: SpeculativeExecutor, rows: Sequence[_Row], drafts: int) -> list[_Won]:
    """Draft some tokens of every sequence behind its last, verify them, and say what is won."""
    device = rows[0].prompt.device
    drafted: list[list[int]] = [[] for _ in rows]
    beliefs: list[list[Tensor]] = [[] for _ in rows]
    tokens = torch.tensor([row.tokens[-1] for row in rows], device=device)
    for _ in range(drafts):
        logits = executor.draft(tokens).float()
        for row, own, own_drafted, own_beliefs in zip(rows, logits, drafted, beliefs, strict=True):
            scores = row.scores(own, own_drafted)
            if row.rules.draw:
                own_beliefs.append(probabilities(scores))
                own_drafted.append(int(draw(own_beliefs[-1][None], row.uniform()[None])))
            else:
                own_drafted.append(int(scores.argmax()))
        tokens = torch.tensor([own_drafted[-1] for own_drafted in drafted], device=device)
    won = []
    for row, own, tried, own_beliefs in zip(rows, executor.verify(tokens).float(), drafted, beliefs, strict=True):
        scores = torch.stack([row.scores(own[place], tried[:place]) for place in range(drafts + 1)])
        if row.rules.draw:
            kept = accepted(tried, own_beliefs, list(probabilities(scores)), row.uniform)
        else:
            kept = agreed(tried, scores.argmax(dim=-1).tolist())
        won.append(_Won(kept, len(kept) - 1))
    return won
