"""Leaving a decoder early token by token, and what later tokens attend to where a token ran no layer."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eenet.backbones.gpt import Gpt
from eenet.costs import count_macs
from eenet.decoding.costs import DecoderCosts
from eenet.decoding.executor import Executor, Keys, Prompt, Rows
from eenet.decoding.plans import LayerPlan
from eenet.errors import UserError

ExitRule = Callable[[int, Tensor], Tensor]
"""Called with the layer that has just run and the hidden states after it, `(batch, dim)`, before any norm; says which
of these tokens leave here, bool `(batch,)`."""

Fill = Literal["project", "recompute"]
"""Where a skipped layer's keys and values of a token come from: `project` sends the hidden state that the token left
with through that layer's key and value projections (as Elbayad et al. 2020 and CALM, Schuster et al. 2022, do);
`recompute` runs the skipped layers on the token after all, once a later token of the sequence needs them."""


@dataclass
class Left:
    """A token that left early, under `recompute`.

    Attributes:
        next_layer: The first layer that it has not run.
        hidden: Its hidden state before that layer, `(dim,)`.
    """

    next_layer: int
    hidden: Tensor


class ExitingExecutor(Executor):
    """An executor whose tokens may leave before the end of their plan.

    No token of a prompt leaves; the rule is asked about every later token, after each layer of its plan but the
    last. With `recompute`, every layer sees the keys and values that the whole plan computes, so that a token's leaving
    changes nothing for later ones but the time at which the work is done; a sequence's last tokens save it.

    Args:
        gpt: The decoder, as for `Executor`.
        plans: The layers of a token that never leaves: one plan for all sequences, or one for each.
        rule: Decides which tokens leave; its MACs are counted at its first call after each layer.
        fill: Where the keys and values of skipped layers come from.
        costs: The decoder's costs, counted if left out.
        prompt: Which layers a prompt's tokens run.
        keys: Whether layers outside of a token's plan get its keys and values.

    Raises:
        UserError: An unknown fill, or what `Executor` refuses.
    """

    def __init__(
        self,
        gpt: Gpt,
        plans: LayerPlan | Sequence[LayerPlan],
        rule: ExitRule,
        fill: Fill = "project",
        costs: DecoderCosts | None = None,
        prompt: Prompt = "full",
        keys: Keys = "projected",
    ) -> None:
        super().__init__(gpt, plans, costs, prompt, keys)
        if fill not in ("project", "recompute"):
            raise UserError("fill", fill, "must be project or recompute")
        self.rule, self.fill = rule, fill
        self._rule_macs: dict[int, int] = {}

    def prefill(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Read the prompts through their whole plans; see `Executor.prefill`."""
        hidden = super().prefill(inputs)
        self._behind: list[list[Left]] = [[] for _ in hidden]
        return hidden

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these rows; see `Executor.keep`."""
        super().keep(rows)
        self._behind = [self._behind[row] for row in rows]

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence until the rule lets it leave; see `Executor.step`."""
        hidden = self._append(tokens)
        inside, counts = set(range(len(tokens))), [0] * len(tokens)
        for layer, holders in self._holders.items():
            members = self._members.get(layer, ())
            left = tuple(row for row in members if row not in inside) if self.fill == "project" else ()
            skipped = tuple(row for row in holders if row not in members) if self.keys == "projected" else ()
            if filled := tuple(sorted(left + skipped)):
                self._project(layer, filled, hidden)
            if not (running := tuple(row for row in members if row in inside)):
                continue
            hidden = self._run_rows(layer, running, hidden)
            for row in running:
                counts[row] += 1
            for row in self._leaving(layer, running, hidden):
                inside.remove(row)
                if self.fill == "recompute":
                    self._behind[row].append(Left(layer + 1, hidden[row, 0]))
        for row in inside:
            self._behind[row] = []
        self._charge(counts)
        return hidden.squeeze(1)

    def _leaving(self, layer: int, running: Rows, hidden: Tensor) -> Rows:
        asked = tuple(row for row in running if layer < self._row_plans[row].layers[-1])
        if not asked:
            return ()
        states = hidden[self._tensor(asked), 0]
        if layer in self._rule_macs:
            leave = self.rule(layer, states)
        else:
            macs, leave = count_macs(self.rule, layer, states)
            self._rule_macs[layer] = macs // len(asked)
        for row in asked:
            self._live[row].rule += self._rule_macs[layer]
        return tuple(row for row, leaves in zip(asked, leave.tolist(), strict=True) if leaves)

    def _run_rows(self, layer: int, rows: Rows, hidden: Tensor) -> Tensor:
        groups: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            groups[self._missing(layer, row)].append(row)
        for missing, group in groups.items():
            hidden = self._run_group(layer, tuple(group), missing, hidden)
        return hidden

    def _run_group(self, layer: int, rows: Rows, missing: int, hidden: Tensor) -> Tensor:
        index, late = self._tensor(rows), [self._behind[row][len(self._behind[row]) - missing :] for row in rows]
        states = hidden[index]
        if missing:
            earlier = torch.stack([torch.stack([token.hidden for token in tokens]) for tokens in late])
            states = torch.cat([earlier, states], dim=1)
        states = self._run_layer(layer, rows, states)
        for row, tokens, done in zip(rows, late, states, strict=True):
            for token, state in zip(tokens, done[:-1], strict=True):
                token.hidden, token.next_layer = state, layer + 1
            self._live[row].fill += missing * (self.costs.layer + self._lengths[row] * self.costs.attention)
        return hidden.index_copy(0, index, states[:, -1:])

    def _missing(self, layer: int, row: int) -> int:
        """How many tokens of a row that left early lack this layer: the latest ones, as earlier ones are never behind.

        A token that goes on takes all before it along, so of two tokens the earlier has run as many layers or more.
        """
        return sum(token.next_layer <= layer for token in self._behind[row])


def confidence_rule(gpt: Gpt, threshold: float) -> ExitRule:
    """Leave where the next token is clear: its probability exceeds the second one's by the threshold.

    Probabilities are those of the model's own norm and head on the layer's hidden state (the softmax response of CALM,
    Schuster et al. 2022). The head runs once more after every layer, which `Usage.rule` counts.

    Example:
        >>> confidence_rule(gpt=None, threshold=1.5)
        Traceback (most recent call last):
        eenet.errors.UserError: threshold = 1.5: is a difference of probabilities, from 0 to 1
    """
    if not 0 <= threshold <= 1:
        raise UserError("threshold", threshold, "is a difference of probabilities, from 0 to 1")

    def rule(layer: int, hidden: Tensor) -> Tensor:
        first, second = gpt.head(gpt.normalise(hidden)).softmax(dim=-1).topk(2, dim=-1).values.unbind(dim=-1)
        return first - second >= threshold

    return rule
