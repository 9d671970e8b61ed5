"""Tuning a decoder to run some of its layers: the loss under a plan, and plans drawn batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from eenet.backbones.gpt import Gpt
from eenet.backbones.tuned import DESCRIPTION, Tuned, tuned_folder
from eenet.decoding.executor import Prompt, pad_left, prompt_columns
from eenet.decoding.plans import NOTATION, LayerPlan, parse_plan
from eenet.decoding.sequences import Sequences, TextBatch
from eenet.errors import UserError
from eenet.features.key import content_digest

DRAWS = "strided:*, uniform:* or early:* (any number of layers), or drop:RATE"


@dataclass(frozen=True)
class PlanDraws:
    """What a training draws the plan of each batch from, all entries alike.

    Args:
        entries: Plans in the notation of `parse_plan`; `strided:*`, `uniform:*` or `early:*` for any number of layers;
            or `drop:RATE`, which leaves out each layer by itself, the deeper the likelier, the last one with
            probability RATE: the layer dropout of LayerSkip (Elhoushi et al. 2024), `RATE (2^(l / (L - 1)) - 1)`.
        num_layers: Layers of the decoder.

    Raises:
        UserError: No entry, or one that is none of these.

    Example:
        >>> draws = PlanDraws(("strided:2", "full"), 4)
        >>> str(draws.draw(lambda: 0.2)), draws.layers, [str(plan) for plan in draws.plans]
        ('0,2', (0, 1, 2, 3), ['0,2', '0-3'])
    """

    entries: tuple[str, ...]
    num_layers: int

    def __post_init__(self) -> None:
        if not self.entries:
            raise UserError("plans", [], f"name at least one plan: {NOTATION}, {DRAWS}")
        for entry in self.entries:
            self._plan(entry, lambda: 0.0)

    @property
    def plans(self) -> list[LayerPlan]:
        """The entries that are plans."""
        return [self._plan(entry, lambda: 0.0) for entry in self.entries if not _drawn(entry)]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that some plan may run, which are trained; the others are frozen."""
        if any(map(_drawn, self.entries)):
            return tuple(range(self.num_layers))
        return tuple(sorted({layer for plan in self.plans for layer in plan.layers}))

    def covers(self, plan: LayerPlan) -> bool:
        """Whether a plan is among those that a training with these draws runs."""
        budgets = [entry.removesuffix("*") for entry in self.entries if entry.endswith(":*")]
        drawn = [parse_plan(f"{name}{len(plan)}", self.num_layers) for name in budgets]
        return plan in (*self.plans, *drawn) or any(entry.startswith("drop:") for entry in self.entries)

    def draw(self, uniform: Callable[[], float]) -> LayerPlan:
        """The plan of a batch.

        Args:
            uniform: Gives numbers drawn evenly from [0, 1).
        """
        return self._plan(self.entries[int(uniform() * len(self.entries))], uniform)

    def _plan(self, entry: str, uniform: Callable[[], float]) -> LayerPlan:
        name, _, value = entry.partition(":")
        if name == "drop":
            rate = _rate(entry, value)
            span = max(self.num_layers - 1, 1)
            rates = [rate * (2 ** (layer / span) - 1) for layer in range(self.num_layers)]
            kept = tuple(layer for layer, dropped in enumerate(rates) if uniform() >= dropped)
            return LayerPlan(kept, self.num_layers)
        if value == "*":
            return parse_plan(f"{name}:{1 + int(uniform() * self.num_layers)}", self.num_layers)
        return parse_plan(entry, self.num_layers)


def _drawn(entry: str) -> bool:
    return entry.startswith("drop:") or entry.endswith(":*")


def _rate(entry: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError as error:
        raise UserError("plans", entry, "the rate of layers that are dropped is a number, such as drop:0.2") from error
    if not 0 <= rate < 1:
        raise UserError("plans", entry, "the rate of layers that are dropped is at least 0 and below 1")
    return rate


def text_batch(texts: Sequences, rows: Iterable[int]) -> TextBatch:
    """Some prompts and what follows them.

    Example:
        >>> text_batch(Sequences([[5, 6], [7]], ["", ""], [[8], [9]], (), 2), [0, 1]).input_ids.tolist()
        [[5, 6, 8], [0, 7, 9]]
    """
    rows = list(rows)
    padded = pad_left([texts.tokens(row) for row in rows])
    return TextBatch(**padded, prompts=torch.tensor([len(texts.prompts[row]) for row in rows]))


def plan_loss(gpt: Gpt, texts: TextBatch, plan: LayerPlan, prompt: Prompt = "full") -> Tensor:
    """Cross-entropies of what follows the prompts, in nats, `(continuation tokens of all texts,)`.

    A layer outside of the plan is frozen: gradients pass through what it makes of a prompt, not to its weights.

    Args:
        gpt: The decoder.
        texts: Prompts and what follows them.
        plan: The layers that run for what follows.
        prompt: Which layers a prompt's tokens run.
    """
    *_, last = plan_states(gpt, texts, plan, prompt)
    return continuation_loss(gpt, last, texts)


def plan_states(gpt: Gpt, texts: TextBatch, plan: LayerPlan, prompt: Prompt) -> Iterator[Tensor]:
    """Hidden states behind each layer of the decoder, `(batch, tokens, dim)`, as `plan_loss` reads the last of them."""
    hidden, calls = gpt.parts.record(texts.input_ids, texts.attention_mask)
    full = prompt_columns(texts.attention_mask, texts.prompts)
    for layer, module in enumerate(gpt.layers):
        if layer in plan.layers:
            hidden = calls[layer].run(module, hidden)
        elif prompt == "full":
            hidden = torch.where(full, calls[layer].run(_Frozen(module), hidden), hidden)
        yield hidden


def continuation_loss(gpt: Gpt, hidden: Tensor, texts: TextBatch) -> Tensor:
    """Cross-entropies of what follows the prompts, from the last layer's output, `(batch, tokens, dim)`."""
    ids, mask, prompts = texts
    place, column = (mask.cumsum(dim=1) > prompts[:, None]).nonzero().T
    logits = gpt.head(gpt.normalise(hidden[place, column - 1]))
    return F.cross_entropy(logits.float(), ids[place, column], reduction="none")


class _Frozen(nn.Module):
    """A layer whose weights get no gradient."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: object, **kwargs: object) -> object:
        weights = {name: weight.detach() for name, weight in self.layer.named_parameters()}
        return functional_call(self.layer, weights, args, kwargs)


class PlanWeights:
    """The decoder that runs a plan: one that was tuned for it, where there is one.

    Args:
        gpt: The decoder for all other plans.
        tuned: Folders of runs of `PlanTuning` of that decoder; for a plan, the first that names it, or may draw it.

    Raises:
        UserError: A folder without tuned weights, or of another number of layers.
    """

    def __init__(self, gpt: Gpt, tuned: Sequence[str] = ()) -> None:
        self.gpt, self._draws, self._made = gpt, dict[str, PlanDraws](), dict[str, Gpt]()
        self._digests: dict[int, str] = {}
        for path in tuned:
            folder = tuned_folder(path)
            if folder is None or not (folder / DESCRIPTION).is_file():
                raise UserError("tuned", path, "holds no tuned weights; the end of `eenet fit` writes them")
            found = Tuned.read(folder)
            if found.num_layers != gpt.num_stages:
                raise UserError("tuned", path, f"has {found.num_layers} layers, the model {gpt.num_stages}")
            self._draws[path] = PlanDraws(found.plans, found.num_layers)

    def name(self, plan: LayerPlan) -> str | None:
        """The folder of the weights of a plan, `None` for the decoder's own."""
        named = [path for path, draws in self._draws.items() if plan in draws.plans]
        return next(iter([*named, *(path for path, draws in self._draws.items() if draws.covers(plan))]), None)

    def __call__(self, plan: LayerPlan) -> Gpt:
        """The decoder that runs a plan, loaded when it is first asked for and on the device of the others."""
        name = self.name(plan)
        if name is None:
            return self.gpt
        if name not in self._made:
            weight = next(self.gpt.parameters())
            made = Gpt(task="tokens", pretrained=name, dtype=str(weight.dtype).removeprefix("torch."))
            self._made[name] = made.eval().to(weight.device)
        return self._made[name]

    def digest(self, plan: LayerPlan) -> str:
        """SHA-256 of the weights of the decoder that runs a plan."""
        gpt = self(plan)
        if id(gpt) not in self._digests:
            self._digests[id(gpt)] = content_digest(gpt)
        return self._digests[id(gpt)]
