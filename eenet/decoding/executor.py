"""Running some of a decoder's own layers, with positions, masks and a key-value cache that fit the ones that run."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eenet.backbones.decoder import Call, cut_model
from eenet.backbones.decoder_proof import LAYERS, PLANS, TEXTS, difference, proved
from eenet.backbones.gpt import Gpt
from eenet.backbones.huggingface import read_tokens
from eenet.decoding.cache import LayerCache, Slot, read_before, write_keys
from eenet.decoding.costs import DecoderCosts, Usage, count_decoder
from eenet.decoding.plans import LayerPlan
from eenet.errors import UserError

Rows = tuple[int, ...]
"""Some rows of the batch, increasing."""

Prompt = Literal["full", "plan"]
"""Which layers a prompt's tokens run: `full` runs all of them and leaves skipping to the generated tokens, as the
authors of arXiv 2410.20022 do; `plan` runs those of the plan."""

Keys = Literal["projected", "absent"]
"""Whether a layer that a token skips still gets its keys and values: `projected` makes them of the state that passes
through, as those authors do. Where a sequence keeps its plan nothing reads them, so that the text is the same and the
MACs are more; `absent` makes none."""


class Executor:
    """Generates hidden states with a layer plan for each sequence of a batch.

    A layer runs on the rows whose plan has it. With `prompt="plan"` and `keys="absent"` it keeps keys and values of
    those alone, and a layer that is in no plan is never touched. Prompts are padded on the left (`pad_left`), and
    positions count the tokens that are no padding.

    Args:
        gpt: The decoder, with its language-model head (`task="tokens"`), in evaluation mode.
        plans: One plan for all sequences, or one for each.
        costs: The decoder's costs, counted if left out.
        prompt: Which layers a prompt's tokens run.
        keys: Whether skipped layers get keys and values.

    Attributes:
        usage: What each sequence has cost, in the order of the prompts; sequences that were dropped stay in it.

    Raises:
        UserError: A decoder without a language-model head or of a family that cannot skip, plans of another decoder, or
            an unknown option.
    """

    def __init__(
        self,
        gpt: Gpt,
        plans: LayerPlan | Sequence[LayerPlan],
        costs: DecoderCosts | None = None,
        prompt: Prompt = "full",
        keys: Keys = "projected",
    ) -> None:
        if gpt.task != "tokens":
            raise UserError("backbone.task", gpt.task, "generation needs the language-model head; set `tokens`")
        every = [plans] if isinstance(plans, LayerPlan) else list(plans)
        for plan in every:
            if plan.num_layers != gpt.num_stages:
                raise UserError("plan", str(plan), f"is of {plan.num_layers} layers, the decoder has {gpt.num_stages}")
        check_treatment(prompt, keys)
        self.gpt, self.layers, self.prompt, self.keys = gpt, list(gpt.layers), prompt, keys
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
        device = next(self.gpt.parameters()).device
        ids, mask = (rows.to(device) for rows in read_tokens(inputs, self.gpt.max_tokens))
        self._real = check_prompts(mask.bool())
        if not self._shared and len(self._plans) != len(ids):
            raise UserError("plan", len(self._plans), f"give one plan for all or one for each of {len(ids)} prompts")
        self._ids = ids[:, :0]
        self._lengths: list[int] = self._real.sum(dim=1).tolist()
        self._assign(self._plans * len(ids) if self._shared else self._plans)
        self.caches = {layer: LayerCache(len(rows)) for layer, rows in self._holders.items()}
        self.usage = [Usage() for _ in self._lengths]
        self._live = list(self.usage)
        for usage, plan, length in zip(self._live, self._row_plans, self._lengths, strict=True):
            usage.layers.append(self.gpt.num_stages if self.prompt == "full" else len(plan))
            usage.prefill = self.costs.prefill(usage.layers[0], length)
        hidden = self._embed(ids)
        if self.prompt == "full":
            every = tuple(range(len(ids)))
            return self._run_layers(hidden, dict.fromkeys(range(self.gpt.num_stages), every))
        return self._run_layers(hidden, self._members)

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
        return self._run_layers(hidden, self._members).squeeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head on hidden states, `(..., dim)` to `(..., vocabulary)`."""
        return self.gpt.head(self.gpt.normalise(hidden))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these rows, increasing, and what the caches hold of the others."""
        kept = set(rows)
        for layer, holders in self._holders.items():
            places = [place for place, row in enumerate(holders) if row in kept]
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
        layers = range(self.gpt.num_stages)
        members = {layer: tuple(row for row, plan in enumerate(plans) if layer in plan.layers) for layer in layers}
        every = tuple(range(len(plans)))
        held = self.prompt == "full" or self.keys == "projected"
        self._members: dict[int, Rows] = {layer: rows for layer, rows in members.items() if rows}
        self._holders: dict[int, Rows] = dict.fromkeys(layers, every) if held else self._members

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
        self._views: dict[tuple[Rows, int], list[Call]] = {(tuple(range(len(ids))), ids.shape[1]): calls}
        return hidden

    def _record(self, index: Tensor | None, queries: int) -> tuple[Tensor, list[Call]]:
        ids, real = (self._ids, self._real) if index is None else (self._ids[index], self._real[index])
        return self.gpt.parts.record(ids[:, -queries:], real.long(), read_before(real.shape[1] - queries))

    def _run_layers(self, hidden: Tensor, running: Mapping[int, Rows]) -> Tensor:
        for layer in self._holders:
            hidden = self._run_on(layer, running.get(layer, ()), hidden)
        return hidden

    def _run_on(self, layer: int, rows: Rows, hidden: Tensor) -> Tensor:
        others = tuple(row for row in self._holders[layer] if row not in rows) if self.keys == "projected" else ()
        if others:
            self._project(layer, others, hidden)
        if not rows:
            return hidden
        return self._put(hidden, rows, self._run_layer(layer, rows, self._some(hidden, rows)))

    def _some(self, hidden: Tensor, rows: Rows) -> Tensor:
        return hidden if len(rows) == len(hidden) else hidden[self._tensor(rows)]

    def _put(self, hidden: Tensor, rows: Rows, states: Tensor) -> Tensor:
        return states if len(rows) == len(hidden) else hidden.index_copy(0, self._tensor(rows), states)

    def _run_layer(self, layer: int, rows: Rows, states: Tensor) -> Tensor:
        call = self._view(rows, states)[layer]
        return call.run(self.layers[layer], states, self._slot(layer, rows, states))

    def _project(self, layer: int, rows: Rows, hidden: Tensor) -> None:
        states = self._some(hidden, rows)
        write_keys(self._view(rows, states)[layer], self.layers[layer], states, self._slot(layer, rows, states))
        for row, tokens in zip(rows, self._tokens(rows, states.shape[1]), strict=True):
            self._live[row].fill += tokens * self.costs.key_values

    def _tokens(self, rows: Rows, queries: int) -> list[int]:
        return [min(queries, self._lengths[row]) for row in rows]

    def _slot(self, layer: int, rows: Rows, states: Tensor) -> Slot:
        holders = self._holders[layer]
        places = None if rows == holders else self._tensor(tuple(holders.index(row) for row in rows))
        return Slot(self.caches[layer], places, self._real.shape[1] - states.shape[1])

    def _tensor(self, rows: Rows) -> Tensor:
        return torch.tensor(rows, device=self._real.device)

    def _view(self, rows: Rows, states: Tensor) -> list[Call]:
        queries = states.shape[1]
        if (rows, queries) not in self._views:
            self._views[rows, queries] = self._record(self._tensor(rows), queries)[1]
            for row, tokens in zip(rows, self._tokens(rows, queries), strict=True):
                self._live[row].fill += tokens * self.costs.embed
        return self._views[rows, queries]


def check_treatment(prompt: str, keys: str) -> None:
    """Raise a `UserError` for an unknown treatment of prompts or skipped layers."""
    for field, value, known in (("prompt", prompt, Prompt), ("keys", keys, Keys)):
        if value not in get_args(known):
            raise UserError(field, value, f"must be {' or '.join(get_args(known))}")


class _Unproved(Executor):
    def _prove(self) -> None:
        """It is what the proof is about."""


@torch.no_grad()
def _generation_reason(model: Any) -> str:
    """Judge of `proved`: prompts padded on the left, then tokens one by one, one plan for each sequence."""
    gpt = Gpt.of(model)
    read = [text[:-2] for text in TEXTS]
    for plans in (PLANS[1:], PLANS[:2]):
        executor = _Unproved(
            gpt, [LayerPlan(plan, LAYERS) for plan in plans], DecoderCosts(0, 0, 0, 0, 0), "plan", "absent"
        )
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
def final_hidden(
    gpt: Gpt,
    inputs: Mapping[str, Tensor],
    plans: LayerPlan | Sequence[LayerPlan],
    prompts: Sequence[int] | None = None,
) -> Tensor:
    """What the head reads at every token of whole texts, `(batch, tokens, dim)`, the final norm included.

    Args:
        gpt: The decoder, with its language-model head, in evaluation mode.
        inputs: `input_ids` and `attention_mask`, padded on the left (`pad_left`).
        plans: One plan for all texts, or one for each.
        prompts: How many tokens at the beginning of each text are its prompt and run all layers, as before a
            generation with `prompt="full"`; without it all tokens run the plan.
    """
    if prompts is None:
        return gpt.normalise(Executor(gpt, plans, prompt="plan", keys="absent").prefill(inputs))
    ids, mask = read_tokens(inputs, gpt.max_tokens)
    every = [plans] * len(ids) if isinstance(plans, LayerPlan) else plans
    full = prompt_columns(mask, prompts)
    hidden, calls = gpt.parts.record(ids, mask)
    for layer in range(gpt.num_stages):
        ran = calls[layer].run(gpt.layers[layer], hidden)
        inside = torch.tensor([layer in plan.layers for plan in every], device=mask.device)
        hidden = torch.where(full | inside[:, None, None], ran, hidden)
    return gpt.normalise(hidden)


def prompt_columns(mask: Tensor, prompts: Sequence[int] | Tensor) -> Tensor:
    """Which columns of texts padded on the left hold padding or the prompt, bool `(batch, tokens, 1)`.

    Args:
        mask: 1 on tokens and 0 on padding, `(batch, tokens)`.
        prompts: How many tokens at the beginning of each text are its prompt.

    Example:
        >>> prompt_columns(torch.tensor([[0, 1, 1, 1]]), [2]).flatten().tolist()
        [True, True, True, False]
    """
    return (mask.cumsum(dim=1) <= torch.as_tensor(prompts, device=mask.device)[:, None])[..., None]


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
    """Raise a `UserError` where a prompt, bool `(batch, tokens)`, is empty or padded on the right."""
    if real.numel() == 0 or not bool(real.any(dim=1).all()):
        raise UserError("prompt", "", "is empty; give at least one token")
    if not bool(real[:, -1].all()):
        raise UserError("attention_mask", "padded on the right", 'pad on the left: tokenizer.padding_side = "left"')
    return real
