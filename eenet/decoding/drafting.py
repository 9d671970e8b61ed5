"""Drafting tokens with some of a decoder's layers and verifying them with the others in one pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eenet.backbones.decoder_proof import LAYERS, TEXTS, difference, proved
from eenet.backbones.gpt import Gpt
from eenet.costs import count_macs
from eenet.decoding.costs import DecoderCosts, Usage
from eenet.decoding.executor import Executor, pad_left
from eenet.decoding.plans import LayerPlan, full_plan
from eenet.errors import UserError

MOST_DRAFTS = 8
"""Tokens drafted at a time where their number is chosen."""


@dataclass
class SpeculativeUsage(Usage):
    """What one sequence has cost where tokens are drafted.

    `decode` and `layers` hold rejected tokens too: what a pass ran is shared out evenly among the tokens it gave.

    Attributes:
        passes: Verifications.
        drafted: Tokens drafted.
        judged: Of them, those before the first rejected one of their pass, and that one.
        accepted: Of them, those that were what the full model says.
    """

    passes: int = 0
    drafted: int = 0
    judged: int = 0
    accepted: int = 0


class SpeculativeExecutor(Executor):
    """Runs a plan's layers to draft tokens, and the layers that the drafts lack to verify them (LayerSkip, 2404.16710).

    As many first layers as the plan has without a gap are shared: their states and their keys and values are the full
    model's, so verification starts behind them. The plan's later layers see the full model's keys and values of
    everything that is verified, and their own of what is drafted, which verification overwrites.

    The rows of a batch keep different numbers of tokens: what a row has read always ends in the last column, and
    `accept` moves it there.

    Args:
        gpt: The decoder, as for `Executor`.
        plan: The layers that draft.
        drafts: Tokens drafted at a time; `None` for as many as pay, see `drafts_that_pay`.
        head: Predicts from the plan's last state, `(batch, dim)` to `(batch, vocabulary)`; by default the final norm
            and the model's own head.
        costs: The decoder's costs, counted if left out.

    Attributes:
        shared: How many first layers draft and verification share.

    Raises:
        UserError: A plan of another decoder, no draft, or a family whose layers cannot read several tokens behind
            others, or forget them.
    """

    def __init__(
        self,
        gpt: Gpt,
        plan: LayerPlan,
        drafts: int | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        costs: DecoderCosts | None = None,
    ) -> None:
        if drafts is not None and drafts < 1:
            raise UserError("drafts", drafts, "must be at least 1; leave it out for as many as pay")
        if plan.num_layers != gpt.num_stages:
            raise UserError("speculate", str(plan), f"is of {plan.num_layers} layers, not {gpt.num_stages}")
        super().__init__(gpt, full_plan(gpt.num_stages), costs)
        self.plan, self.drafts = plan, drafts
        self.shared = next((place for place, layer in enumerate(plan.layers) if place != layer), len(plan))
        self._own_head, self._judged, self._accepted = head, 0, 0

    @cached_property
    def draft_cost(self) -> float:
        """MACs of a drafted token's layers and head, as a share of a token's in the full model; without attention."""
        costs, layers = self.costs, self.gpt.num_stages
        return (len(self.plan) * costs.layer + self._head_macs) / (layers * costs.layer + costs.head)

    def next_drafts(self) -> int:
        """How many tokens are worth drafting now."""
        if self.drafts is not None:
            return self.drafts
        return drafts_that_pay((self._accepted + 2) / (self._judged + 2.5), self.draft_cost, MOST_DRAFTS)

    def prefill(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Read the prompts with all layers; see `Executor.prefill`."""
        hidden = super().prefill(inputs)
        self.usage = [SpeculativeUsage(**vars(usage)) for usage in self.usage]
        self._live, self._states = list(self.usage), list[Tensor]()
        return hidden

    @torch.no_grad()
    def draft(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence with the plan's layers.

        Args:
            tokens: Token numbers, `(batch,)`.

        Returns:
            The plan's logits of the token that follows, `(batch, vocabulary)`.
        """
        hidden = self._read(tokens)
        for layer in self.plan.layers[self.shared :]:
            hidden = self._run_on(layer, self._every, hidden)
        return (self._own_head or self.logits)(hidden.squeeze(1))

    @torch.no_grad()
    def verify(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence, and with it, in one pass, what was drafted before.

        Args:
            tokens: Token numbers, `(batch,)`.

        Returns:
            The full model's logits of what follows each of the tokens read since `accept`, `(batch, read, vocabulary)`.
        """
        self._read(tokens)
        hidden = torch.cat(self._states, dim=1)
        read = hidden.shape[1]
        self._views[self._every, read] = self._record(None, read)[1]
        for layer in range(self.shared, self.gpt.num_stages):
            hidden = self._run_on(layer, self._every, hidden)
        return self.logits(hidden)

    def accept(self, counts: Sequence[int], accepted: Sequence[int]) -> None:
        """Keep of the tokens read since the last time the first ones, and forget the others.

        Args:
            counts: How many of each sequence, one at least; as many tokens were won.
            accepted: Drafted tokens of each sequence that were what the full model says.
        """
        read, columns = len(self._states), self._real.shape[1]
        self._charge_pass(counts, accepted, read - 1)
        self._states = []
        self._lengths = [length - read + count for length, count in zip(self._lengths, counts, strict=True)]
        width = max(self._lengths)
        shifts = [width - (columns - read + count) for count in counts]
        for cache in self.caches.values():
            cache.shift(shifts, columns)
        moved = [row.roll(shift) for row, shift in zip(self._ids, shifts, strict=True)]
        self._ids = torch.stack(moved)[:, :width]
        first = width - torch.tensor(self._lengths, device=self._real.device)
        self._real = torch.arange(width, device=self._real.device) >= first[:, None]

    @property
    def _every(self) -> tuple[int, ...]:
        return tuple(range(len(self._lengths)))

    @cached_property
    def _head_macs(self) -> int:
        if self._own_head is None:
            return self.costs.head
        return count_macs(self._own_head, next(self.gpt.parameters()).new_zeros(1, self.gpt.feature_dims[0]))[0]

    def _read(self, tokens: Tensor) -> Tensor:
        hidden = self._append(tokens)
        for layer in range(self.shared):
            hidden = self._run_on(layer, self._every, hidden)
        self._states.append(hidden)
        return hidden

    def _charge_pass(self, counts: Sequence[int], accepted: Sequence[int], drafted: int) -> None:
        own, every = len(self.plan) - self.shared, self.gpt.num_stages
        layers = drafted * own + (drafted + 1) * every
        for usage, length, count, right in zip(self._live, self._lengths, counts, accepted, strict=True):
            assert isinstance(usage, SpeculativeUsage)
            contexts = range(length - drafted, length + 1)
            usage.decode += sum(self.costs.decode(every, context) for context in contexts)
            usage.decode += sum(self._draft_macs(own, context) for context in contexts[:-1])
            usage.layers += [(layers + place) // count for place in range(count)]
            usage.passes += 1
            usage.drafted += drafted
            usage.judged += (judged := min(right + 1, drafted))
            usage.accepted += right
            self._judged, self._accepted = self._judged + judged, self._accepted + right

    def _draft_macs(self, layers: int, context: int) -> int:
        return layers * (self.costs.layer + context * self.costs.attention) + self._head_macs

    def _prove(self) -> None:
        super()._prove()
        if reason := proved(self.gpt.model, _speculation_reason):
            kind = self.gpt.model.config.model_type
            raise UserError("speculate", kind, f"drafted tokens cannot be verified in this family: {reason}")


def drafts_that_pay(acceptance: float, draft_cost: float, most: int) -> int:
    """The number of drafted tokens, from 0 to `most`, with the most tokens for their cost.

    A pass that drafts `n` tokens wins `(1 - a^(n + 1)) / (1 - a)` on average (Leviathan et al. 2023, equation 1) and
    costs `1 + n c` full steps, if verifying several tokens takes as long as reading one: so it is where time goes into
    reading weights rather than into arithmetic.

    Args:
        acceptance: `a`, the probability that a drafted token is right if those before it were.
        draft_cost: `c`, of a drafted token, in full steps.
        most: The most tokens.

    Example:
        >>> drafts_that_pay(0.8, 0.2, 8), drafts_that_pay(0.5, 0.6, 8), drafts_that_pay(1.0, 0.9, 8)
        (4, 0, 8)
    """
    gains = [sum(acceptance**place for place in range(n + 1)) / (1 + n * draft_cost) for n in range(most + 1)]
    return max(range(most + 1), key=lambda n: gains[n])


class _Unproved(SpeculativeExecutor):
    def _prove(self) -> None:
        """It is what the proof is about."""


@torch.no_grad()
def _speculation_reason(model: Any) -> str:
    """Judge of `proved`: of two drafted tokens one text keeps both and one text none, then both go on."""
    gpt, costs = Gpt.of(model), DecoderCosts(0, 0, 0, 0, 0)
    lengths = [len(text) for text in TEXTS]
    for layers in ((0, 1), (1, 3)):
        executor = _Unproved(gpt, LayerPlan(layers, LAYERS), 2, costs=costs)
        executor.prefill(pad_left([TEXTS[0][:-4], TEXTS[1][:-2]]))
        executor.draft(torch.tensor([TEXTS[0][-4], TEXTS[1][-2]]))
        executor.draft(torch.tensor([TEXTS[0][-3], 1]))
        first = executor.verify(torch.tensor([TEXTS[0][-2], 2]))
        executor.accept([3, 1], [2, 0])
        second = executor.verify(torch.tensor([TEXTS[0][-1], TEXTS[1][-1]]))
        for row, kept in enumerate((3, 1)):
            expected = model(input_ids=torch.tensor([TEXTS[row]])).logits[0, lengths[row] - kept - 1 :]
            if reason := difference(torch.cat([first[row, :kept], second[row]]), expected):
                return f"after drafts of layers {layers} of {LAYERS}, they {reason}"
    return ""
