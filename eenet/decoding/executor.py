"""Running some of a decoder's own layers, with positions, masks and a key-value cache that fit the ones that run."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from eenet.backbones.gpt import Gpt
from eenet.backbones.huggingface import read_tokens
from eenet.decoding.cache import LayerCache, Slot, attention_mask
from eenet.decoding.costs import DecoderCosts, Usage, count_decoder
from eenet.decoding.plans import LayerPlan
from eenet.errors import UserError

Rows = tuple[int, ...]
"""Some rows of the batch, increasing."""


class View(NamedTuple):
    """What the layers of one step need for some rows.

    Attributes:
        rows: Which rows of the batch, `None` for all.
        mask: Added to the scores of attention, `None` where nothing needs hiding; for a sliding layer, `sliding`.
        sliding: The same for layers that see a window.
        rotary: `cos` and `sin` of the tokens, or nothing.
    """

    rows: Tensor | None
    mask: Tensor | None
    sliding: Tensor | None
    rotary: dict[str, Tensor]


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
        self.usage: list[Usage] = []
        self._shared, self._plans = isinstance(plans, LayerPlan), every
        self._costs = costs
        keywords = inspect.signature(type(self.layers[0]).forward).parameters
        self._cache_keyword = "cache" if "cache" in keywords else "past_key_values"
        config = gpt.model.config
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * gpt.num_stages
        self._sliding = [kind == "sliding_attention" for kind in kinds]
        self._window: int | None = config.sliding_window if any(self._sliding) else None

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
        self._real = self._real[torch.tensor(rows, device=self._real.device)]
        self._lengths = [self._lengths[row] for row in rows]
        self._live = [self._live[row] for row in rows]
        self._assign([self._row_plans[row] for row in rows])

    def _assign(self, plans: list[LayerPlan]) -> None:
        self._row_plans = plans
        used = sorted({layer for plan in plans for layer in plan.layers})
        self._members: dict[int, Rows] = {
            layer: tuple(row for row, plan in enumerate(plans) if layer in plan.layers) for layer in used
        }
        self._padded = not bool(self._real.all())

    def _append(self, tokens: Tensor) -> Tensor:
        self._real = torch.cat([self._real, self._real.new_ones(len(tokens), 1)], dim=1)
        self._lengths = [length + 1 for length in self._lengths]
        return self._embed(tokens.unsqueeze(1))

    def _charge(self, counts: list[int]) -> None:
        for usage, layers, length in zip(self._live, counts, self._lengths, strict=True):
            usage.decode += self.costs.decode(layers, length)
            usage.layers.append(layers)

    def _embed(self, ids: Tensor) -> Tensor:
        self._views: dict[tuple[Rows, int], View] = {}
        positions = self._positions(None, ids.shape[1])
        return self.gpt.parts.embed(self.gpt.body, ids, positions)

    def _positions(self, index: Tensor | None, queries: int) -> Tensor:
        real = self._real if index is None else self._real[index]
        return (real.cumsum(dim=1)[:, -queries:] - 1).clamp_(min=0)

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
        mask = view.sliding if self._sliding[layer] else view.mask
        rotary = {"position_embeddings": (view.rotary["cos"], view.rotary["sin"])} if view.rotary else {}
        return self.layers[layer](hidden, attention_mask=mask, **{self._cache_keyword: slot}, **rotary)

    def _view(self, rows: Rows, hidden: Tensor) -> View:
        queries = hidden.shape[1]
        if (rows, queries) not in self._views:
            self._views[rows, queries] = self._make_view(rows, hidden, queries)
        return self._views[rows, queries]

    def _make_view(self, rows: Rows, hidden: Tensor, queries: int) -> View:
        every = len(rows) == len(self._real)
        index = None if every else torch.tensor(rows, device=self._real.device)
        real = self._real if index is None else self._real[index]
        columns = real.shape[1]
        plain = not self._padded and queries in (1, columns)
        mask = None if plain else attention_mask(real, queries, None, hidden.dtype)
        sliding = mask
        if self._window is not None and columns > self._window:
            sliding = attention_mask(real, queries, self._window, hidden.dtype)
        return View(index, mask, sliding, self.gpt.rotary(hidden, self._positions(index, queries)))


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
