from typing import Any

import pytest
import torch
from torch import Tensor

from eenet.backbones.gpt import Gpt
from eenet.costs import count_macs
from eenet.decoding import (
    Executor,
    ExitingExecutor,
    LayerPlan,
    Rules,
    confidence_rule,
    count_decoder,
    full_plan,
    generate,
    pad_left,
)
from eenet.decoding.cache import LayerCache, Slot, read_before, write_keys
from eenet.errors import UserError
from tests._dummies.decoders import FAMILIES, LAYERS, TEXTS, cut_model, make_decoder

FULL = full_plan(LAYERS)
FILLS = ["project", "recompute"]
CASES = [(name, FILLS[number % len(FILLS)]) for number, name in enumerate(FAMILIES)]
"""Each family with one of the fills."""
NEXT = torch.tensor([[7, 21, 13], [4, 4, 28], [19, 6, 3], [8, 25, 9], [11, 2, 16]])
DEPTHS = [[2, 1, 4], [3, 1, 1], [1, 4, 1], [4, 2, 2], [4, 4, 4]]
"""Layers that each of the tokens in `NEXT` runs."""


class Script:
    """Lets every token leave after as many layers as written for its step and row."""

    def __init__(self, depths: list[list[int]]) -> None:
        self.depths, self.step, self.inside = depths, -1, [0]

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        if layer == 0:
            self.step, self.inside = self.step + 1, list(range(len(self.depths[0])))
        leave = [self.depths[self.step][row] == layer + 1 for row in self.inside]
        assert len(hidden) == len(leave)
        self.inside = [row for row, gone in zip(self.inside, leave, strict=True) if not gone]
        return torch.tensor(leave)


def never(layer: int, hidden: Tensor) -> Tensor:
    return torch.zeros(len(hidden), dtype=torch.bool)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-3)


def layer_inputs(gpt: Gpt, text: list[int]) -> list[Tensor]:
    """Hidden states before each layer and after the last, `(tokens, dim)`, of a text by `transformers` alone."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, out: states.extend([given[0][0], out[0]])) for layer in gpt.layers
    ]
    gpt.model(input_ids=torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return [*states[::2], states[-1]]


def attended(gpt: Gpt, text: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer by `transformers` alone."""
    cache = gpt.model(input_ids=torch.tensor([text]), use_cache=True)
    layers = getattr(cache, "cache", None) or cache.past_key_values
    return [(layer.keys, layer.values) for layer in layers.layers]


class Recorder:
    """Stands in for a cache of so many columns and records what a layer gives it for one of them."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.kept = keys, values
        return keys.expand(-1, -1, self.columns, -1), values.expand(-1, -1, self.columns, -1)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_projected_keys_and_values_are_what_the_layer_itself_would_keep(name: str) -> None:
    gpt, text = make_decoder(name), TEXTS[0]
    _, calls = gpt.parts.record(torch.tensor([text]), torch.ones(1, len(text)).long(), read_before(0))
    states = layer_inputs(gpt, text)
    for layer, (keys, values) in enumerate(attended(gpt, text)):
        cache = LayerCache(1)
        write_keys(calls[layer], gpt.layers[layer], states[layer][None], Slot(cache, None, 0))
        for found, expected in zip(cache.read(None, len(text)), (keys, values), strict=True):
            close(found[:, :, -expected.shape[2] :], expected)  # transformers keeps no more than a window


@pytest.mark.parametrize(("name", "fill"), CASES)
def test_a_rule_that_never_exits_is_the_plan(name: str, fill: Any) -> None:
    gpt, plans = make_decoder(name), [FULL, LayerPlan((0, 2), LAYERS), LayerPlan((1, 2, 3), LAYERS)]
    plain = generate(Executor(gpt, plans), pad_left(TEXTS), 10)
    assert generate(ExitingExecutor(gpt, plans, never, fill), pad_left(TEXTS), 10) == plain


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_recomputing_leaves_every_token_with_what_the_whole_model_has_at_its_exit(name: str) -> None:
    gpt = make_decoder(name)
    executor = ExitingExecutor(gpt, FULL, Script(DEPTHS), "recompute")
    executor.prefill(pad_left(TEXTS))
    found = torch.stack([executor.step(tokens) for tokens in NEXT])
    for row, text in enumerate(TEXTS):
        whole = [*text, *NEXT[:, row].tolist()]
        states = layer_inputs(gpt, whole)
        for step, depths in enumerate(DEPTHS):
            close(found[step, row], states[depths[row]][len(text) + step])
        for layer, expected in enumerate(attended(gpt, whole)):
            kept = executor.caches[layer].read(None, len(TEXTS[0]) + len(NEXT))
            for mine, theirs in zip(kept, expected, strict=True):
                close(mine[row, :, -theirs.shape[2] :], theirs[0])
        assert executor.usage[row].layers == [LAYERS] + [depths[row] for depths in DEPTHS]


@torch.no_grad()
def test_recomputing_within_a_plan_equals_the_model_of_the_plans_layers() -> None:
    gpt, plan = make_decoder(), LayerPlan((0, 2, 3), LAYERS)
    depths = [[1], [3], [1], [4]]
    executor = ExitingExecutor(gpt, plan, Script(depths), "recompute", prompt="plan")
    executor.prefill(pad_left(TEXTS[:1]))
    found = torch.stack([executor.step(tokens) for tokens in NEXT[:4, :1]])[:, 0]
    inner = cut_model(gpt, plan.layers)
    states: list[Tensor] = []
    for layer in inner.model.layers:
        layer.register_forward_hook(lambda _, given, out: states.append(out[0]))
    inner(input_ids=torch.tensor([TEXTS[0] + NEXT[:4, 0].tolist()]))
    for step, (layers_run,) in enumerate([(1,), (2,), (1,), (3,)]):
        close(found[step], states[layers_run - 1][len(TEXTS[0]) + step])


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_projection_fills_skipped_layers_from_the_exit_state(name: str) -> None:
    """By hand: two tokens after the prompt, the first leaves after layer 1, the second after none but the last."""
    gpt, text = make_decoder(name), TEXTS[0]
    executor = ExitingExecutor(gpt, FULL, Script([[1], [4]]), "project")
    executor.prefill(pad_left([text]))
    exit_state = executor.step(NEXT[0, :1])
    close(exit_state[0], layer_inputs(gpt, [*text, 7])[1][-1])
    column = len(text)
    recorder = Recorder(column + 1)
    _, calls = gpt.parts.record(NEXT[:1, :1], torch.ones(1, column + 1).long(), read_before(column))
    for layer in range(1, LAYERS):
        calls[layer].run(gpt.layers[layer], exit_state[:, None], recorder)
        for mine, theirs in zip(executor.caches[layer].read(None, column + 1), recorder.kept, strict=True):
            close(mine[:, :, -1:], theirs)
    before = [cache.read(None, column + 1) for cache in executor.caches.values()]
    assert executor.usage[0].layers == [LAYERS, 1]
    executor.step(NEXT[1, :1])
    for cache, kept in zip(executor.caches.values(), before, strict=True):
        torch.testing.assert_close(cache.read(None, column + 1), kept, atol=0, rtol=0)


@pytest.mark.parametrize("fill", FILLS)
def test_sequences_of_a_batch_do_not_see_each_other(fill: Any) -> None:
    gpt = make_decoder()
    plans = [FULL, LayerPlan((0, 1, 3), LAYERS), LayerPlan((0, 2, 3), LAYERS)]

    def rule(layer: int, hidden: Tensor) -> Tensor:
        return hidden[:, 0] > 0

    together = generate(ExitingExecutor(gpt, plans, rule, fill), pad_left(TEXTS), 15)
    assert len({tuple(usage.layers) for usage in together.usage}) > 1
    for row, text in enumerate(TEXTS):
        alone = generate(ExitingExecutor(gpt, plans[row], rule, fill), pad_left([text]), 15)
        assert (alone.tokens[0], alone.usage[0]) == (together.tokens[row], together.usage[row])


@pytest.mark.parametrize("fill", FILLS)
def test_dropping_sequences_changes_nothing_for_the_others(fill: Any) -> None:
    gpt = make_decoder()

    def rule(layer: int, hidden: Tensor) -> Tensor:
        return hidden[:, 0] > 0

    free = generate(ExitingExecutor(gpt, FULL, rule, fill), pad_left(TEXTS), 15).tokens
    stop = free[1][3]
    found = generate(ExitingExecutor(gpt, FULL, rule, fill), pad_left(TEXTS), 15, stop={stop}).tokens
    assert found == [row[: row.index(stop)] if stop in row else row for row in free]


@torch.no_grad()
@pytest.mark.parametrize(("name", "fill"), CASES)
def test_what_the_fill_and_the_rule_cost_is_what_the_counter_counts(name: str, fill: Any) -> None:
    gpt = make_decoder(name)
    confident = confidence_rule(gpt, 0.3)
    script = Script([[row[0]] for row in DEPTHS])

    def rule(layer: int, hidden: Tensor) -> Tensor:
        confident(layer, hidden)
        return script(layer, hidden)

    executor = ExitingExecutor(gpt, FULL, rule, fill, count_decoder(gpt))
    executor.prefill(pad_left(TEXTS[:1]))
    counted = sum(count_macs(lambda t=t: executor.logits(executor.step(t)))[0] for t in NEXT[:, :1])
    usage = executor.usage[0]
    assert usage.decode + usage.fill + usage.rule == counted
    assert usage.rule == executor.costs.head * (2 + 3 + 1 + 3 + 3)
    if fill == "project":
        assert usage.fill == executor.costs.key_values * (2 + 1 + 3)


def test_confidence_leaves_at_the_first_layer_that_is_sure_enough() -> None:
    gpt = make_decoder()
    certain = ExitingExecutor(gpt, FULL, confidence_rule(gpt, 0))
    assert generate(certain, pad_left(TEXTS), 4).usage[0].layers == [LAYERS, 1, 1, 1]
    executor = ExitingExecutor(gpt, FULL, confidence_rule(gpt, 0.2), "recompute")
    found = generate(executor, pad_left(TEXTS[:1]), 12, rules=Rules.sampled(1.0, seed=3))
    states = layer_inputs(gpt, TEXTS[0] + found.tokens[0])
    ordered = [gpt.head(gpt.normalise(state)).softmax(dim=-1).sort(dim=-1).values for state in states[1:-1]]
    sure = [row[:, -1] - row[:, -2] >= 0.2 for row in ordered]
    expected = [next((d + 1 for d in range(LAYERS - 1) if sure[d][len(TEXTS[0]) + t]), LAYERS) for t in range(11)]
    assert found.usage[0].layers == [LAYERS, *expected]
    assert len(set(expected)) > 1


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="project or recompute"):
        ExitingExecutor(make_decoder(), FULL, never, "copy")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="threshold"):
        confidence_rule(make_decoder(), 1.2)
