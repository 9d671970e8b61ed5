from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from eenet.backbones.gpt import Gpt
from eenet.decoding import Executor, LayerPlan, Rules, full_plan, generate, model_rules, pad_left, stream
from eenet.decoding.generation import pick
from eenet.errors import UserError
from tests._dummies.decoders import CONTEXT, FAMILIES, GATED, LAYERS, TEXTS, cut_model, greedy, make_decoder

PLANS = [LayerPlan((0, 2), LAYERS), LayerPlan((0, 1, 3), LAYERS), LayerPlan((1,), LAYERS)]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_full_plan_generates_what_transformers_does(name: str) -> None:
    gpt, prompts = make_decoder(name), pad_left(TEXTS, pad=1)
    whole = gpt.model.generate(**prompts, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=1)
    found = generate(Executor(gpt, full_plan(LAYERS)), prompts, 20)
    assert found.tokens == whole[:, prompts["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_each_plan_generates_what_a_model_of_its_layers_does(name: str) -> None:
    gpt = make_decoder(name)
    found = generate(Executor(gpt, PLANS, prompt="plan"), pad_left(TEXTS), 12)
    alone = [greedy(cut_model(gpt, plan.layers), text, 12) for plan, text in zip(PLANS, TEXTS, strict=True)]
    assert found.tokens == alone


def test_a_stop_token_ends_its_sequence_alone() -> None:
    gpt, executor = make_decoder(), Executor(make_decoder(), PLANS, prompt="plan")
    free = generate(executor, pad_left(TEXTS), 15).tokens
    stop = free[1][3]
    found = generate(executor, pad_left(TEXTS), 15, stop={stop})
    ends = [row.index(stop) if stop in row else 15 for row in free]
    assert len(set(ends)) > 1
    assert found.tokens == [row[:end] for row, end in zip(free, ends, strict=True)]
    assert found.tokens[0] == greedy(cut_model(gpt, PLANS[0].layers), TEXTS[0], 15, eos_token_id=stop)[: ends[0]]
    read = [len(tokens) + 1 if end < 15 else 15 for tokens, end in zip(found.tokens, ends, strict=True)]
    assert [len(usage.layers) for usage in found.usage] == read


def test_tokens_are_handed_out_one_by_one() -> None:
    executor = Executor(make_decoder(), full_plan(LAYERS))
    whole = generate(executor, pad_left(TEXTS), 5).tokens
    steps = stream(executor, pad_left(TEXTS), 5)
    assert next(steps) == [(row, whole[row][0]) for row in range(3)]
    assert [len(usage.layers) for usage in executor.usage] == [1, 1, 1]
    assert [[token for _, token in step] for step in steps] == [list(tokens) for tokens in zip(*whole, strict=True)][1:]


def test_generation_ends_where_the_context_is_full() -> None:
    gpt = make_decoder("gpt2")
    found = generate(Executor(gpt, full_plan(LAYERS)), pad_left(TEXTS), 1000).tokens
    assert {len(row) for row in found} == {CONTEXT - len(TEXTS[0]) + 1}
    assert found[0][:-1] == greedy(gpt.model, TEXTS[0], CONTEXT - len(TEXTS[0]))


@settings(max_examples=5, deadline=None)
@given(st.floats(0.3, 2), st.floats(0.1, 1), st.integers(0, 10**6))
def test_draws_follow_the_distribution_that_transformers_warps(temperature: float, top_p: float, seed: int) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))
    expected = warped.softmax(dim=-1)[0]
    generators = [torch.Generator().manual_seed(number) for number in range(4000)]
    drawn = pick(logits.expand(4000, -1), Rules.sampled(temperature, top_p), generators, torch.zeros(4000, 1).long())
    counts = drawn.bincount(minlength=12)
    assert not counts[expected == 0].any()
    common = expected * 4000 >= 5
    if int(common.sum()) > 1:
        share = expected[common] / expected[common].sum() * counts[common].sum()
        assert chisquare(counts[common].numpy(), share.numpy()).pvalue > 1e-5


def test_samples_depend_on_the_seed_and_not_on_the_batch() -> None:
    executor, sampling = Executor(make_decoder(), full_plan(LAYERS)), Rules.sampled(temperature=1.5, top_p=0.9, seed=5)
    together = generate(executor, pad_left(TEXTS), 10, rules=sampling).tokens
    assert together == generate(executor, pad_left(TEXTS), 10, rules=sampling).tokens
    assert together != generate(executor, pad_left(TEXTS), 10, rules=Rules.sampled(1.5, 0.9, seed=50)).tokens
    alone = generate(executor, pad_left(TEXTS[1:2]), 10, rules=Rules.sampled(1.5, 0.9, seed=6)).tokens
    assert alone == together[1:2]


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Rules.sampled(**wrong)


def test_no_new_token_is_refused() -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        generate(Executor(make_decoder(), full_plan(LAYERS)), pad_left(TEXTS), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 3.0},
        {"repetition_penalty": 3.0, "encoder_repetition_penalty": 1.5, "eos_token_id": [*range(5, 25)]},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [17, 29, 25]},
        {"min_new_tokens": 9, "eos_token_id": list(range(15))},
        {"eos_token_id": [5, 8, 11, 14, 20, 23]},
        {"max_new_tokens": 3},
    ],
)
def test_generation_settings_do_what_they_do_in_transformers(changes: dict[str, Any]) -> None:
    gpt, plan = make_decoder(), LayerPlan((1, 3), LAYERS)
    gpt.model.generation_config.update(**{"max_new_tokens": 12, "pad_token_id": 1, "eos_token_id": None} | changes)
    prompts = pad_left(TEXTS, 1)
    model = cut_model(gpt, plan.layers)
    theirs = model.generate(**prompts)[:, prompts["input_ids"].shape[1] :].tolist()
    plain = cut_model(make_decoder(), plan.layers).generate(**prompts, max_new_tokens=12, eos_token_id=None)
    assert theirs != plain[:, prompts["input_ids"].shape[1] :].tolist()
    stop = gpt.model.generation_config.eos_token_id or []
    expected = [row[: next((at for at, token in enumerate(row) if token in stop), len(row))] for row in theirs]
    assert generate(Executor(gpt, plan, prompt="plan"), prompts, rules=model_rules(gpt, prompts)).tokens == expected


@pytest.mark.parametrize(
    ("changes", "message"), [({"num_beams": 2}, "beam_search"), ({"guidance_scale": 2.0}, "guidance_scale")]
)
def test_settings_that_need_more_than_greedy_or_sampling_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_rules(make_decoder(), pad_left(TEXTS), max_new_tokens=3, **changes)


def test_a_dynamic_rope_goes_beyond_its_table() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    gpt = Gpt(task="tokens", family="llama", overrides=GATED | {"rope_parameters": rope}).eval()
    found = generate(Executor(gpt, full_plan(LAYERS)), pad_left(TEXTS[:1]), CONTEXT + 5).tokens[0]
    assert found == greedy(gpt.model, TEXTS[0], CONTEXT + 5)


def test_a_classifiers_checkpoint_generates_nothing(tmp_path: Path) -> None:
    Gpt(4, family="llama", overrides=GATED).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no language model: its checkpoint has no lm_head\.weight"):
        Gpt(task="tokens", pretrained=str(tmp_path))
