"""Exits on a decoder that are trained: each token is a sample, and leaves at an exit of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from eenet.backbones.gpt import Gpt
from eenet.backbones.tuned import model_digest
from eenet.costs import count_macs
from eenet.decoding.costs import DecoderCosts, count_decoder
from eenet.decoding.observe import read_states
from eenet.decoding.pruning import predict_among, prune
from eenet.described import describe
from eenet.errors import UserError
from eenet.gates import Gate, GateInput, Memory, UncertaintyGate
from eenet.inference_modules import InferenceModule, TiedHead, run_inference_modules
from eenet.network import EarlyExitNetwork, ExitOutputs
from eenet.policies.base import Policy
from eenet.profile import CostProfile
from eenet.reporting import gather_exits
from eenet.routing import Routed, routed


class TokenFeatures(NamedTuple):
    """What the exits of a decoder read of some tokens, all layers run for all of them.

    Attributes:
        features: Hidden states at each early exit, before any norm, `(tokens, dim)`.
        steps: Cosine similarity of the output and the input of the layer before each early exit, `(tokens, exits - 1)`.
        final: Hidden states after the last layer, before any norm, `(tokens, dim)`.
    """

    features: list[Tensor]
    steps: Tensor
    final: Tensor


@dataclass(frozen=True)
class TokenCosts(CostProfile):
    """MACs of one generated token that sees as many tokens as the backbone's `example_tokens`.

    Attributes:
        fills: Keys and values of the layers that a token leaves out, one for each early exit.
        lazy_heads: Heads run only where tokens leave, as the gates need none.
        last_head: The decoder's own head on the candidates alone, where later heads choose among such.
    """

    fills: tuple[int, ...] = ()
    lazy_heads: bool = False
    last_head: int | None = None

    @property
    def cumulative(self) -> list[int]:
        """As a `CostProfile`, with the keys and values of the layers left out."""
        *early, last = super().cumulative
        last += 0 if self.last_head is None else self.last_head - self.classifier
        if self.lazy_heads:
            passed = [sum(self.heads[:exit]) for exit in range(self.num_exits)]
            early, last = [total - before for total, before in zip(early, passed, strict=False)], last - passed[-1]
        return [*(total + fill for total, fill in zip(early, self.fills, strict=True)), last]


class DecoderNetwork(EarlyExitNetwork):
    """Exits after some layers of a decoder; the last exit is the decoder's own norm and head.

    Trained and judged on tokens whose keys and values are the full model's, all exits at once. Generation, where tokens
    really leave, is `eenet.decoding.RoutedExecutor`.

    Args:
        backbone: The decoder, with its language-model head (`task: tokens`).
        exits: Layers, from 0, after which an exit reads; `all` for every layer but the last.
        inference_module: Makes an exit's head from the decoder.
        gate: Makes the gates from their number.
        vocabulary: Number of the first exit's likeliest tokens among which all later heads choose, the decoder's own
            included, outside of training (arXiv 2410.18952); 0 for the whole vocabulary. The full model stays whole.

    Raises:
        UserError: A decoder without that head, exits out of order or range, or a vocabulary for gates without logits.
    """

    backbone: Gpt
    gate_inputs: ClassVar[tuple[GateInput, ...]] = ("logits", "steps")

    def __init__(
        self,
        backbone: Gpt,
        exits: list[int] | Literal["all"] = "all",
        inference_module: Callable[[Gpt], InferenceModule] = TiedHead,
        gate: Callable[[int], Gate] = UncertaintyGate,
        vocabulary: int = 0,
    ) -> None:
        if backbone.task != "tokens":
            raise UserError("backbone.task", backbone.task, "exits of every token need `tokens`")
        super().__init__(backbone, exits, lambda dim, classes: inference_module(backbone), gate)
        if vocabulary < 0:
            raise UserError("network.vocabulary", vocabulary, "is a number of tokens, or 0 for all")
        if vocabulary and (self.gate.reads != "logits" or not self.exit_stages):
            problem = "is chosen by the first exit's head, which runs where gates read logits alone"
            raise UserError("network.vocabulary", vocabulary, problem)
        self.vocabulary = vocabulary

    @cached_property
    def decoder_costs(self) -> DecoderCosts:
        """MACs of the decoder's parts."""
        return count_decoder(self.backbone)

    @cached_property
    def costs(self) -> TokenCosts:
        """MACs of every part for one generated token."""
        return count_token_costs(self)

    @property
    def base_digest(self) -> str | None:
        """As for any network: a pretrained decoder is saved as its name."""
        pretrained = describe(self.backbone)["init_args"].get("pretrained")
        return None if pretrained is None else model_digest(self.backbone.model)

    def extract(self, inputs: Any) -> TokenFeatures:
        """What the exits read of all tokens of a tokenized batch but padding; features are handed back as they are."""
        if isinstance(inputs, TokenFeatures):
            return inputs
        place, column = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).nonzero().T
        return self.read_tokens(inputs, place, column)

    def read_tokens(self, inputs: Any, place: Tensor, column: Tensor) -> TokenFeatures:
        """What the exits read of some tokens of a batch, see `eenet.decoding.observe.read_states`."""
        budgets = [*(stage + 1 for stage in self.exit_stages), self.backbone.num_stages]
        (*features, final), (*steps, _) = read_states(self.backbone, inputs, place, column, budgets)
        return TokenFeatures(features, torch.stack(steps, dim=1) if steps else final.new_empty(len(final), 0), final)

    def exit_logits(self, extracted: TokenFeatures) -> Tensor:
        """Logits of all exits, `(tokens, exits, vocabulary)`; no gate runs."""
        final = self.full_logits(extracted).unsqueeze(1)
        if not extracted.features:
            return final
        logits = torch.cat([run_inference_modules(self.heads, extracted.features), final], dim=1)
        return prune(logits, self.vocabulary) if self.vocabulary and not self.training else logits

    def connected(self, extracted: TokenFeatures) -> tuple[Tensor, Tensor]:
        """Logits of all exits, which are not connected, so that nothing is added to their loss."""
        logits = self.exit_logits(extracted)
        return logits, logits.new_zeros(())

    def full_logits(self, extracted: TokenFeatures) -> Tensor:
        """What the full model says, `(tokens, vocabulary)`."""
        return self.backbone.head(self.backbone.normalise(extracted.final))

    def from_features(self, extracted: TokenFeatures) -> ExitOutputs:
        """Heads and gates on features that were extracted before."""
        logits = self.exit_logits(extracted)
        return ExitOutputs(logits, self.gate_scores(logits, extracted.steps))

    def gate_scores(self, logits: Tensor, steps: Tensor) -> Tensor:
        """Scores of the gates, `(tokens, exits - 1)`, from all exits' logits and the steps."""
        if not self.exit_stages:
            return logits.new_empty(len(logits), 0)
        return self.gate(logits[:, :-1] if self.gate.reads == "logits" else steps)

    def with_gate(self, gate: Gate) -> Self:
        """As of any network; behind a gate that reads no logits no first head chooses candidates, so there are none."""
        other = super().with_gate(gate)
        other.vocabulary = self.vocabulary if gate.reads == "logits" else 0
        return other

    def route(self, inputs: Any, policy: Policy) -> Routed:
        """Where the tokens of given texts leave, which read the full model's keys and values, and what that costs.

        Nothing is skipped, as later tokens need those; `eenet.decoding.RoutedExecutor` skips in generation.
        """
        logits, scores = self(inputs)
        exits = policy.exits(logits.argmax(-1), scores)
        return routed(self.costs, gather_exits(logits, exits), exits)


def count_token_costs(network: DecoderNetwork) -> TokenCosts:
    """Count the MACs of one generated token in each part, its first layer for all."""
    gpt, parts = network.backbone, network.decoder_costs
    weight = next(gpt.parameters())
    hidden = torch.zeros(1, gpt.feature_dims[0], dtype=weight.dtype, device=weight.device)
    heads, gates = [], []
    memory: Memory = ()
    candidates = torch.zeros(1, network.vocabulary, dtype=torch.long, device=weight.device)
    modules: Any = network.inference_modules
    for exit, module in enumerate(modules):
        macs, logits = count_macs(module, hidden)
        heads.append(count_macs(module.among, hidden, candidates)[0] if exit and network.vocabulary else macs)
        read = logits if network.gate.reads == "logits" else hidden[:, 0]
        memory = network.gate.start(read) if exit == 0 else memory
        macs, (_, memory) = count_macs(network.gate.at, exit, read, memory)
        gates.append(macs)
    return TokenCosts(
        embed=parts.embed,
        stages=(parts.layer + gpt.example_tokens * parts.attention,) * gpt.num_stages,
        classifier=parts.head,
        heads=tuple(heads),
        gates=tuple(gates),
        exit_stages=tuple(network.exit_stages),
        fills=tuple((gpt.num_stages - 1 - stage) * parts.key_values for stage in network.exit_stages),
        lazy_heads=network.gate.reads == "steps",
        last_head=count_macs(predict_among, gpt, hidden, candidates)[0] if network.vocabulary else None,
    )
