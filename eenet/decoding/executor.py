"""Running some of a decoder's own layers, with positions, masks and a key-value cache that fit the ones that run."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eenet.backbones.decoder import Call, cut_model
from eenet.backbones.gpt import Gpt
from eenet.backbones.huggingface import read_tokens
from eenet.backbones.proof import LAYERS, PLANS, TEXTS, difference, proved
from eenet.decoding.cache import LayerCache, Slot, read_before
from eenet.decoding.costs import DecoderCosts, Usage, count_decoder
from eenet.decoding.plans import LayerPlan
from eenet.errors import UserError

Rows = tuple[int, ...]
"""Some rows of the batch, increasing."""


class View(NamedTuple):
    """What the layers of one step need for some rows.

    Attributes:
        rows: Which rows of the batch, `None` for all.
        calls: How the model's own forward calls each layer for them.
    """

    rows: Tensor | None
    calls: list[Call]


class Executor:
    """Generates hidden states with a layer plan for each sequence of a batch.

    A layer runs on the rows whose plan has it and keeps keys and values of those alone; a layer that is in no plan is
    never touched. Prompts are padded on the left (`pad_left`), and positions count the tokens that are no padding.

    Args:
        gpt: The decoder, with its language-model head (`task="tokens"`), in evaluation mode.
        plans: One plan for all sequences, or one for each.
        costs: The decoder's costs, counted if left out.

    Attributes:
        usage: What each sequence has cost, in the order of the prompts; sequences that were dropped stay in it.

    Raises:
        UserError: A decoder without a language-model head, or plans of another decoder.
    """

    def __init__(self, gpt: Gpt, plans: LayerPlan | Sequence[LayerPlan], costs: DecoderCosts | None = None) -> None:
        if gpt.task != "tokens":
            raise UserError("backbone.task", gpt.task, "generation needs the language-model head; set `tokens`")
        every = [plans] if isinstance(plans, LayerPlan) else list(plans)
        for plan in every:
            if plan.num_layers != gpt.num_stages:
                raise UserError("plan", str(plan), f"is of {plan.num_layers} layers, the decoder has {gpt.num_stages}")
        self.gpt, self.layers = gpt, list(gpt.layers)
        self._prove()
        self.usage: list[Usage] = []
        self._shared, self._plans = isinstance(plans, LayerPlan), every
        self._costs = costs

    @cached_property
    def costs(self) -> DecoderCosts:
        """MACs of the decoder's parts."""
        return self._costs or count_decoder(self.gpt)

    @property
    def room(self) -> int:
        """Tokens that still fit the context of the longest sequence."""
        return self.gpt.max_tokens - max(self._lengths)

    @torch.no_grad()
    def prefill(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Read the prompts; whatever was read before is forgotten.

        Args:
            inputs: `input_ids`, `(batch, tokens)`, and `attention_mask`, padded on the left.

        Returns:
            Hidden states before the final norm, `(batch, tokens, dim)`; `[:, -1]` predicts the next token.

        Raises:
            UserError: A prompt that is empty, longer than the context or padded on the right, or another number of
                plans.
        """
        ids, mask = read_tokens(inputs, self.gpt.max_tokens)
        self._real = check_prompts(mask.bool())
        if not self._shared and len(self._plans) != len(ids):
            raise UserError("plan", len(self._plans), f"give one plan for all or one for each of {len(ids)} prompts")
        self._ids = ids[:, :0]
        self._lengths: list[int] = self._real.sum(dim=1).tolist()
        self._assign(self._plans * len(ids) if self._shared else self._plans)
        self.caches = {layer: LayerCache() for layer in self._members}
        self.usage = [Usage() for _ in self._lengths]
        self._live = list(self.usage)
        for usage, plan, length in zip(self._live, self._row_plans, self._lengths, strict=True):
            usage.prefill = self.costs.prefill(len(plan), length)
            usage.layers.append(len(plan))
        return self._run_plans(self._embed(ids))

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence.

        Args:
            tokens: Token numbers, `(batch,)`.

        Returns:
            Hidden states before the final norm, `(batch, dim)`.
        """
        hidden = self._append(tokens)
        self._charge([len(plan) for plan in self._row_plans])
        return self._run_plans(hidden).squeeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head on hidden states, `(..., dim)` to `(..., vocabulary)`."""
        return self.gpt.head(self.gpt.normalise(hidden))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these rows, increasing, and what the caches hold of the others."""
        kept = set(rows)
        for layer, members in self._members.items():
            places = [place for place, row in enumerate(members) if row in kept]
            self.caches[layer].keep(torch.tensor(places, dtype=torch.long, device=self._real.device))
        index = torch.tensor(rows, device=self._real.device)
        self._real, self._ids = self._real[index], self._ids[index]
        self._lengths = [self._lengths[row] for row in rows]
        self._live = [self._live[row] for row in rows]
        self._assign([self._row_plans[row] for row in rows])

    def _prove(self) -> None:
        if reason := proved(self.gpt.model, _generation_reason):
            kind = self.gpt.model.config.model_type
            raise UserError("backbone", kind, f"generation cannot leave out layers of this family: {reason}")

    def _assign(self, plans: list[LayerPlan]) -> None:
        self._row_plans = plans
        used = sorted({layer for plan in plans for layer in plan.layers})
        self._members: dict[int, Rows] = {
            layer: tuple(row for row, plan in enumerate(plans) if layer in plan.layers) for layer in used
        }

    def _append(self, tokens: Tensor) -> Tensor:
        self._real = torch.cat([self._real, self._real.new_ones(len(tokens), 1)], dim=1)
        self._lengths = [length + 1 for length in self._lengths]
        return self._embed(tokens.unsqueeze(1))

    def _charge(self, counts: list[int]) -> None:
        for usage, layers, length in zip(self._live, counts, self._lengths, strict=True):
            usage.decode += self.costs.decode(layers, length)
            usage.layers.append(layers)

    def _embed(self, ids: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, ids], dim=1)
        hidden, calls = self._record(None, ids.shape[1])
        self._views = {(tuple(range(len(ids))), ids.shape[1]): View(None, calls)}
        return hidden

    def _record(self, index: Tensor | None, queries: int) -> tuple[Tensor, list[Call]]:
        ids, real = (self._ids, self._real) if index is None else (self._ids[index], self._real[index])
        return self.gpt.parts.record(ids[:, -queries:], real.long(), read_before(real.shape[1] - queries))

    def _run_plans(self, hidden: Tensor) -> Tensor:
        for layer, members in self._members.items():
            view = self._view(members, hidden)
            if view.rows is None:
                hidden = self._run_layer(layer, hidden, view, None)
            else:
                hidden = hidden.index_copy(0, view.rows, self._run_layer(layer, hidden[view.rows], view, None))
        return hidden

    def _run_layer(self, layer: int, hidden: Tensor, view: View, places: Tensor | None) -> Tensor:
        slot = Slot(self.caches[layer], places, self._real.shape[1] - hidden.shape[1])
        return view.calls[layer].run(self.layers[layer], hidden, slot)

    def _view(self, rows: Rows, hidden: Tensor) -> View:
        queries = hidden.shape[1]
        if (rows, queries) not in self._views:
            index = None if len(rows) == len(self._real) else torch.tensor(rows, device=self._real.device)
            self._views[rows, queries] = View(index, self._record(index, queries)[1])
            for row in rows:
                self._live[row].fill += queries * self.costs.embed
        return self._views[rows, queries]


class _Unproved(Executor):
    def _prove(self) -> None:
        """It is what the proof is about."""


@torch.no_grad()
def _generation_reason(model: Any) -> str:
    """Judge of `proved`: prompts padded on the left, then tokens one by one, one plan for each sequence."""
    gpt = Gpt.of(model)
    read = [text[:-2] for text in TEXTS]
    for plans in (PLANS[1:], PLANS[:2]):
        executor = _Unproved(gpt, [LayerPlan(plan, LAYERS) for plan in plans], DecoderCosts(0, 0, 0, 0, 0))
        found = [executor.logits(executor.prefill(pad_left(read))[:, -1])]
        for column in (-2, -1):
            tokens = torch.tensor([text[column] for text in TEXTS])
            found.append(executor.logits(executor.step(tokens)))
        for row, (text, plan) in enumerate(zip(TEXTS, plans, strict=True)):
            expected = cut_model(model, plan)(input_ids=torch.tensor([text])).logits[0, -3:]
            if reason := difference(torch.stack(found)[:, row], expected):
                return f"layers {plan} of {LAYERS} {reason}"
    return ""


@torch.no_grad()
def final_hidden(gpt: Gpt, inputs: Mapping[str, Tensor], plans: LayerPlan | Sequence[LayerPlan]) -> Tensor:
    """What the head reads at every token of whole texts, `(batch, tokens, dim)`, the final norm included.

    Args:
        gpt: The decoder, with its language-model head, in evaluation mode.
        inputs: `input_ids` and `attention_mask`, padded on the left (`pad_left`).
        plans: One plan for all texts, or one for each.
    """
    return gpt.normalise(Executor(gpt, plans).prefill(inputs))


def pad_left(sequences: Sequence[Sequence[int]], pad: int = 0) -> dict[str, Tensor]:
    """Token lists as a batch, padded on the left.

    Args:
        sequences: Token numbers of each text.
        pad: Token number in the padding; any will do, the mask hides it.

    Example:
        >>> pad_left([[5, 6], [7]])["input_ids"].tolist()
        [[5, 6], [0, 7]]
    """
    width = max(map(len, sequences), default=0)
    missing = [width - len(sequence) for sequence in sequences]
    ids = [[pad] * lack + list(sequence) for lack, sequence in zip(missing, sequences, strict=True)]
    mask = [[0] * lack + [1] * (width - lack) for lack in missing]
    return {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}


def check_prompts(real: Tensor) -> Tensor:
    """Check that every prompt, bool `(batch, tokens)`, holds a token and ends with one.

    Raises:
        UserError: An empty prompt, or padding on the right.
    """
    if real.numel() == 0 or not bool(real.any(dim=1).all()):
        raise UserError("prompt", "", "is empty; give at least one token")
    if not bool(real[:, -1].all()):
        raise UserError("attention_mask", "padded on the right", 'pad on the left: tokenizer.padding_side = "left"')
    return real
