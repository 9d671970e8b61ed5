"""Generation with trained exits: every token leaves where a policy says so, and predicts with that exit's head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.backbones.base import select
from eenet.decoding.executor import Executor, pad_left
from eenet.decoding.exits import ExitingExecutor, Fill
from eenet.decoding.network import DecoderNetwork
from eenet.decoding.plans import full_plan
from eenet.decoding.pruning import candidates_of, predict_among, spread_out
from eenet.gates import Memory
from eenet.policies.base import Policy


class RoutedExecutor(ExitingExecutor):
    """An executor whose tokens leave at the exits of a network.

    A prompt runs all layers. Of a later token, `Usage.rule` holds the gates and the heads that they read, that of the
    exit at which it left included; where gates read no logits, `Usage.decode` holds the one head that ran.

    Args:
        network: The decoder with its exits, in evaluation mode.
        policy: Decides who leaves.
        fill: Where the keys and values of skipped layers come from.

    Raises:
        UserError: A policy for another number of exits, or an unknown fill.
    """

    def __init__(self, network: DecoderNetwork, policy: Policy, fill: Fill = "project") -> None:
        gpt = network.backbone
        super().__init__(gpt, full_plan(gpt.num_stages), self._decide, fill, network.decoder_costs)
        policy.check(network.num_exits)
        self.network, self.policy = network, policy
        self._inside: Tensor | None = None
        self._among: Tensor | None = None
        self._exits = {stage: exit for exit, stage in enumerate(network.exit_stages)}
        self._lazy = network.costs.lazy_heads
        heads = [0] * len(self._exits) if self._lazy else network.costs.heads
        self._rule_macs = dict.fromkeys(range(gpt.num_stages), 0) | {
            stage: heads[exit] + network.costs.gates[exit] for stage, exit in self._exits.items()
        }

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence until the policy lets it leave; see `ExitingExecutor.step`."""
        self._inside, self._among = torch.arange(len(tokens), device=tokens.device), None
        self._left: list[tuple[Tensor, Tensor]] = []
        return super().step(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the tokens that were just read, `(batch, vocabulary)`, from the head that each left with.

        Args:
            hidden: What `step`, or of the prompts' last tokens `prefill`, has returned, `(batch, dim)`.
        """
        if self._inside is None:
            return super().logits(hidden)
        left = [*self._left]
        if len(self._inside):
            states = hidden[self._inside]
            left.append((self._inside, super().logits(states) if self._among is None else self._last(states)))
        rows, logits = (torch.cat(parts) for parts in zip(*left, strict=True))
        return logits[rows.argsort()]

    def _last(self, hidden: Tensor) -> Tensor:
        assert self._among is not None
        return spread_out(predict_among(self.gpt, hidden, self._among), self._among, self.gpt.num_classes)

    def prefill(self, inputs: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """Read the prompts through all layers; see `Executor.prefill`."""
        self._inside = None
        return super().prefill(inputs)

    def _append(self, tokens: Tensor) -> Tensor:
        hidden = super()._append(tokens)
        self._before = hidden[:, 0]
        return hidden

    def _pruned(self, head: Any, hidden: Tensor) -> Tensor:
        assert self._among is not None
        return spread_out(head.among(hidden, self._among), self._among, self.gpt.num_classes)

    def _charge(self, counts: list[int]) -> None:
        super()._charge(counts)
        last = self.network.costs.last_head
        for usage, layers in zip(self._live, counts, strict=True):
            if layers == self.gpt.num_stages:
                usage.decode += 0 if last is None else last - self.costs.head
            else:
                own = self.network.costs.heads[self._exits[layers - 1]] if self._lazy else 0
                usage.decode += own - self.costs.head

    def _decide(self, layer: int, hidden: Tensor) -> Tensor:
        """The exit rule: it is asked about the rows that are still inside, in their order, after every layer."""
        assert self._inside is not None
        exit, before, self._before = self._exits.get(layer), self._before, hidden
        if exit is None:
            return torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        head, gate = self.network.inference_modules[exit], self.network.gate
        logits = None if self._lazy else head(hidden) if self._among is None else self._pruned(head, hidden)
        read = F.cosine_similarity(hidden, before, dim=-1) if logits is None else logits
        if exit == 0:
            self._gate_memory: Memory = gate.start(read)
            if self.network.vocabulary:
                self._among = candidates_of(read, self.network.vocabulary)
        scores, self._gate_memory = gate.at(exit, read, self._gate_memory)
        if exit == 0:
            self._policy_memory: Memory = self.policy.start(scores)
        predictions = self._inside if logits is None else logits.argmax(-1)  # without logits nobody asks for them
        leave, self._policy_memory = self.policy.decide(exit, predictions, scores, self._policy_memory)
        if leave.any():
            self._left.append((self._inside[leave], head(hidden[leave]) if logits is None else logits[leave]))
            stay = (~leave).nonzero().squeeze(1)
            self._inside, self._before = self._inside[stay], hidden[stay]
            self._among = None if self._among is None else self._among[stay]
            self._gate_memory, self._policy_memory = (
                select(memory, stay) for memory in (self._gate_memory, self._policy_memory)
            )
        return leave


@torch.no_grad()
def follow(
    executor: Executor, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """Let an executor read given continuations token by token, and say how it predicts them.

    Args:
        executor: Runs the layers.
        prompts: Token numbers of every prompt.
        continuations: Token numbers of what follows each; one at least.

    Returns:
        For each prompt, the negative log-likelihood of every token of its continuation in nats, and whether that token
        was the most likely one, each `(tokens,)`.
    """
    device = next(executor.gpt.parameters()).device
    hidden = executor.prefill({name: rows.to(device) for name, rows in pad_left(prompts).items()})[:, -1]
    rows = list(range(len(prompts)))
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in rows]
    for at in range(max(map(len, continuations))):
        log_p = executor.logits(hidden).float().log_softmax(-1)
        tokens = torch.tensor([continuations[row][at] for row in rows], device=device)
        nll, hit = F.nll_loss(log_p, tokens, reduction="none"), log_p.argmax(-1) == tokens
        for row, *judged in zip(rows, nll.cpu(), hit.cpu(), strict=True):
            found[row].append((judged[0], judged[1]))
        places = [place for place, row in enumerate(rows) if len(continuations[row]) > at + 1]
        if not places:
            break
        if len(places) < len(rows):
            executor.keep(places)
            rows, tokens = [rows[place] for place in places], tokens[torch.tensor(places, device=device)]
        hidden = executor.step(tokens)
    return [(torch.stack([nll for nll, _ in row]), torch.stack([hit for _, hit in row])) for row in found]
