from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.backbones.gpt import Gpt
from eenet.costs import count_macs
from eenet.decoding import Executor, LayerPlan, count_decoder, early_exit, final_hidden, full_plan, pad_left
from eenet.decoding.cache import LayerCache
from eenet.errors import UserError
from tests._dummies.decoders import CONTEXT, FAMILIES, LAYERS, SMALL, TEXTS, cut_model, make_decoder

PLANS = [LayerPlan((0, 2), LAYERS), LayerPlan((0, 1, 3), LAYERS), LayerPlan((1,), LAYERS)]
NEXT = torch.tensor([[7, 21, 13], [4, 4, 28], [19, 6, 3]])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


def planned(gpt: Gpt, plans: Any, costs: Any = None) -> Executor:
    """What runs the plan for the prompt too and nothing of the layers that are left out."""
    return Executor(gpt, plans, costs, "plan", "absent")


def run(executor: Executor, texts: list[list[int]], later: torch.Tensor) -> torch.Tensor:
    """Logits after the prompt and after each later token, `(batch, 1 + later, vocabulary)`."""
    hidden = [executor.prefill(pad_left(texts))[:, -1]]
    hidden += [executor.step(tokens) for tokens in later]
    return executor.logits(torch.stack(hidden, dim=1))


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_each_sequence_gets_what_a_model_of_its_layers_alone_computes(name: str) -> None:
    gpt = make_decoder(name)
    found = run(planned(gpt, PLANS), TEXTS, NEXT)
    for row, (text, plan) in enumerate(zip(TEXTS, PLANS, strict=True)):
        whole = torch.tensor([text + NEXT[:, row].tolist()])
        close(found[row], cut_model(gpt, plan.layers)(input_ids=whole).logits[0, len(text) - 1 :])


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, LAYERS - 1), min_size=1))
def test_any_plan_equals_a_model_of_its_layers(layers: set[int]) -> None:
    gpt, plan = make_decoder("llama"), LayerPlan(tuple(sorted(layers)), LAYERS)
    expected = cut_model(gpt, plan.layers)(input_ids=torch.tensor([TEXTS[0]])).logits
    close(gpt.head(final_hidden(gpt, pad_left(TEXTS[:1]), plan)), expected)


@torch.no_grad()
def test_eager_attention_computes_the_same() -> None:
    gpt = make_decoder("qwen2_sliding")
    fused = run(planned(gpt, PLANS), TEXTS, NEXT)
    gpt.model.set_attn_implementation("eager")
    close(run(planned(gpt, PLANS), TEXTS, NEXT), fused)


def test_a_skipped_layer_never_runs_and_keeps_nothing() -> None:
    gpt, calls = make_decoder(), []
    costs = count_decoder(gpt)
    for number, layer in enumerate(gpt.layers):
        layer.register_forward_hook(lambda *call, number=number: calls.append((number, len(call[2]))))
    executor = planned(gpt, [PLANS[0], PLANS[0], PLANS[2]], costs)
    executor.prefill(pad_left(TEXTS))
    executor.step(NEXT[0])
    assert calls == [(0, 2), (1, 1), (2, 2)] * 2
    assert {layer: len(cache.read(None, 7)[0]) for layer, cache in executor.caches.items()} == {0: 2, 1: 1, 2: 2}


@pytest.mark.parametrize("kept", [[0, 2], [1], [2]])
def test_dropping_sequences_changes_nothing_for_the_others(kept: list[int]) -> None:
    gpt = make_decoder()
    expected = run(planned(gpt, PLANS), TEXTS, NEXT)
    executor = planned(gpt, PLANS)
    executor.prefill(pad_left(TEXTS))
    executor.step(NEXT[0])
    usage = executor.usage
    executor.keep(kept)
    for number, tokens in enumerate(NEXT[1:], start=2):
        close(executor.logits(executor.step(tokens[kept])), expected[kept, number])
    assert [len(row.layers) for row in usage] == [4 if row in kept else 2 for row in range(3)]


def test_an_executor_can_be_used_again() -> None:
    executor = Executor(make_decoder(), full_plan(LAYERS))
    first = run(executor, TEXTS, NEXT)
    run(executor, [[3]], NEXT[:, :1])
    torch.testing.assert_close(run(executor, TEXTS, NEXT), first, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_costs_are_what_the_counter_counts(name: str) -> None:
    gpt = make_decoder(name)
    costs = count_decoder(gpt)
    for plan in PLANS:
        executor = planned(gpt, plan, costs)
        prompt, _ = count_macs(lambda executor=executor: executor.logits(executor.prefill(pad_left(TEXTS[:1]))[:, -1]))
        later = sum(count_macs(lambda t=t, e=executor: e.logits(e.step(t)))[0] for t in NEXT[:, :1])
        assert executor.usage[0].prefill == prompt
        assert executor.usage[0].decode == later
        assert executor.usage[0].total == prompt + later
        assert executor.usage[0].layers == [len(plan)] * 4


def test_padding_costs_nothing_to_a_sequence() -> None:
    gpt = make_decoder()
    together, alone = planned(gpt, PLANS), planned(gpt, PLANS[1])
    run(together, TEXTS, NEXT)
    run(alone, TEXTS[1:2], NEXT[:, 1:2])
    assert together.usage[1] == alone.usage[0]


def test_a_cache_keeps_what_was_written_while_it_grows() -> None:
    tokens = torch.randn(2, 3, 2, 400, 4)
    cache = LayerCache(3)
    cache.write(None, 0, *tokens[..., :7, :])
    for column in range(7, 400):
        for rows in (torch.tensor([2, 0]), torch.tensor([1])):
            cache.write(rows, column, *tokens[:, rows, :, column : column + 1])
    torch.testing.assert_close(torch.stack(cache.read(None, 400)), tokens, atol=0, rtol=0)
    rows = torch.tensor([0, 2])
    torch.testing.assert_close(torch.stack(cache.read(rows, 300)), tokens[:, rows, :, :300], atol=0, rtol=0)
    cache.keep(rows)
    torch.testing.assert_close(torch.stack(cache.read(None, 400)), tokens[:, rows], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("inputs", "remedy"),
    [
        (pad_left([[1, 2], []]), "prompt"),
        (pad_left([[]]), "prompt"),
        ({"input_ids": torch.zeros(1, CONTEXT + 1, dtype=torch.long)}, f"{CONTEXT} at most"),
        ({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.tensor([[1, 0]])}, "pad on the left"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(inputs: dict[str, torch.Tensor], remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        Executor(make_decoder(), full_plan(LAYERS)).prefill(inputs)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("keys", ["projected", "absent"])
def test_a_full_prompt_is_followed_by_the_plans_layers_on_the_full_models_cache(name: str, keys: Any) -> None:
    """By `transformers`: the whole model reads the prompt, a model of the plan's layers goes on with their caches."""
    gpt = make_decoder(name)
    found = run(Executor(gpt, PLANS, keys=keys), TEXTS, NEXT)
    whole = final_hidden(
        gpt, pad_left([[*t, *n] for t, n in zip(TEXTS, NEXT.T.tolist(), strict=True)]), PLANS, [6, 2, 4]
    )
    close(gpt.head(whole[:, -4:]), found)
    for row, (text, plan) in enumerate(zip(TEXTS, PLANS, strict=True)):
        out = gpt.model(input_ids=torch.tensor([text]), use_cache=True)
        close(found[row, 0], out.logits[0, -1])
        model = cut_model(gpt, plan.layers)
        cache = getattr(out, "cache", None) or out.past_key_values
        cache.layers = [cache.layers[layer] for layer in plan.layers]
        for step, token in enumerate(NEXT[:, row].tolist()):
            ids = torch.tensor([[token]])
            close(found[row, step + 1], model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1])


def test_what_a_treatment_costs() -> None:
    """A full prompt costs what the full model's does; projected keys cost theirs in each skipped layer, as fill."""
    gpt = make_decoder()
    costs = count_decoder(gpt)
    for keys in ("projected", "absent"):
        executor = Executor(gpt, PLANS[0], costs, keys=keys)  # type: ignore[arg-type]
        run(executor, TEXTS[:1], NEXT[:, :1])
        usage = executor.usage[0]
        assert usage.prefill == costs.prefill(LAYERS, 6)
        assert usage.layers == [LAYERS, 2, 2, 2]
        assert usage.fill == (3 * 2 * costs.key_values if keys == "projected" else 0)
    with pytest.raises(UserError, match="must be full or plan"):
        Executor(gpt, PLANS[0], prompt="all")  # type: ignore[arg-type]


def test_plans_of_another_decoder_or_number_are_refused() -> None:
    gpt = make_decoder()
    with pytest.raises(UserError, match="of 5 layers"):
        Executor(gpt, early_exit(5, 2))
    with pytest.raises(UserError, match="each of 3 prompts"):
        Executor(gpt, PLANS[:2]).prefill(pad_left(TEXTS))
    with pytest.raises(UserError, match="language-model head"):
        Executor(Gpt(4, overrides=SMALL), full_plan(LAYERS))
