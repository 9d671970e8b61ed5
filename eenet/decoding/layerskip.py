"""Losses of every layer's exit through the model's own norm and head, and which of them count when (LayerSkip)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from eenet.backbones.gpt import Gpt
from eenet.decoding.executor import Prompt
from eenet.decoding.plans import LayerPlan
from eenet.decoding.sequences import TextBatch
from eenet.decoding.tuning import continuation_loss, plan_states
from eenet.errors import UserError


@dataclass(frozen=True)
class ExitCurriculum:
    """Which exits count at a step (Elhoushi et al. 2024, section 4.1.2); the last layer always does [our reading].

    Attributes:
        num_layers: Layers of the decoder.
        every: One exit in so many, another set each step (`rotational:R`); 1 for `all`.
        gradual: From the last layer on one more at a time, so that half-way all count.

    Example:
        >>> sorted(ExitCurriculum.parse("rotational:3", 8).open(step=1, done=0.0))
        [1, 4, 7]
        >>> [len(ExitCurriculum.parse("gradual", 8).open(0, done)) for done in (0.0, 0.25, 0.5, 1.0)]
        [1, 5, 8, 8]
    """

    num_layers: int
    every: int = 1
    gradual: bool = False

    @classmethod
    def parse(cls, text: str, num_layers: int) -> "ExitCurriculum":
        """Read `all`, `rotational:R` or `gradual`; a `UserError` for another text, or an R without an exit."""
        name, _, number = text.partition(":")
        if name in ("all", "gradual") and not number:
            return cls(num_layers, gradual=name == "gradual")
        if name == "rotational" and number.isdecimal() and 1 <= int(number) <= num_layers:
            return cls(num_layers, int(number))
        raise UserError("exits", text, f"must be all, gradual, or rotational:R with R from 1 to {num_layers}")

    def open(self, step: int, done: float) -> set[int]:
        """The layers whose exits count at a step, after a share of all steps."""
        first = self.num_layers - 1 - int(2 * done * self.num_layers) if self.gradual else 0
        layers = range(max(first, 0), self.num_layers)
        return {layer for layer in layers if layer % self.every == step % self.every} | {self.num_layers - 1}


def exit_weights(num_layers: int, scale: float, open_exits: Collection[int]) -> list[float]:
    """How much the loss of each exit counts; they sum to 1 (Elhoushi et al. 2024, equations 5 and 6).

    Before they are normalised, exit `l` weighs `scale (0 + 1 + ... + l)`, and the last, of `L` layers,
    `L - 1 + scale (0 + 1 + ... + (L - 2))`.

    Args:
        num_layers: Layers of the decoder, two at least.
        scale: Of the exits before the last.
        open_exits: The layers whose exits count.

    Example:
        >>> exit_weights(4, 1.0, {1, 3})
        [0.0, 0.14285714285714285, 0.0, 0.8571428571428571]
    """
    last = num_layers - 1
    raw = [scale * layer * (layer + 1) / 2 for layer in range(last)] + [last + scale * (last - 1) * last / 2]
    counting = [weight if layer in open_exits else 0.0 for layer, weight in enumerate(raw)]
    return [weight / sum(counting) for weight in counting]


def exits_loss(
    gpt: Gpt, texts: TextBatch, plan: LayerPlan, weights: Sequence[float], prompt: Prompt = "full"
) -> Tensor:
    """The weighted mean of all exits' mean cross-entropies of what follows the prompts, in nats.

    Args:
        gpt: The decoder.
        texts: Prompts and what follows them.
        plan: The layers that run for what follows; behind others the state is the one that passes through.
        weights: Of each layer's exit; those of weight 0 are not read.
        prompt: Which layers a prompt's tokens run.
    """
    states = zip(weights, plan_states(gpt, texts, plan, prompt), strict=True)
    losses = [weight * continuation_loss(gpt, hidden, texts).mean() for weight, hidden in states if weight > 0]
    return sum(losses[1:], losses[0])
