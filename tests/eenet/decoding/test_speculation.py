"""Drafted and verified text is `model.generate`'s, and sampled text has the full model's own distribution."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from eenet.backbones.gpt import Gpt
from eenet.decoding import Rules, SpeculativeExecutor, generate, mean_layers, model_rules, pad_left, parse_plan
from eenet.decoding.drafting import drafts_that_pay
from eenet.decoding.executor import Executor
from eenet.decoding.generation import GREEDY
from eenet.decoding.plans import full_plan
from eenet.decoding.speculation import accepted, stream_drafted
from eenet.errors import UserError
from tests._dummies.decoders import CONTEXT, FAMILIES, GATED, LAYERS, TEXTS, make_decoder

MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", GATED | {"head_dim": 8}),
    "gemma2": ("gemma2", GATED | {"head_dim": 8, "sliding_window": 3}),
    "mistral": ("mistral", GATED | {"sliding_window": 3}),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": LAYERS, "n_head": 4, "vocab_size": 30, "initializer_range": 0.3}),
}
SLOW = ["llama", "qwen3", "mistral", "bloom"]


def decoder(name: str) -> Gpt:
    if name in FAMILIES:
        return make_decoder(name)
    torch.manual_seed(0)
    family, overrides = MORE[name]
    return Gpt(task="tokens", family=family, overrides=overrides).eval()


def drafting(gpt: Gpt, plan: str, drafts: int | None) -> SpeculativeExecutor:
    return SpeculativeExecutor(gpt, parse_plan(plan, LAYERS), drafts)


def texts(executor: SpeculativeExecutor, prompts: Any, new: int = 20, rules: Rules = GREEDY) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts["input_ids"]]
    for step in stream_drafted(executor, prompts, new, rules=rules):
        for row, token in step:
            found[row].append(token)
    return found


@pytest.mark.parametrize(
    "name", ["gpt2", "qwen2_sliding", "gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_greedy_text_is_what_transformers_generates(name: str) -> None:
    gpt, prompts = decoder(name), pad_left(TEXTS, pad=1)
    whole = gpt.model.generate(**prompts, max_new_tokens=14, do_sample=False, eos_token_id=None, pad_token_id=1)
    expected = whole[:, prompts["input_ids"].shape[1] :].tolist()
    won = set[int]()
    for plan, drafts in (("early:2", 3), ("1-3", 2)):
        executor = drafting(gpt, plan, drafts)
        assert texts(executor, prompts, 14) == expected
        won |= {usage.accepted for usage in executor.usage}
        assert all(len(usage.layers) == 14 for usage in executor.usage)
    assert len(won) > 2


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 3.0},
        {"suppress_tokens": [17, 29, 25], "forced_eos_token_id": 7},
        {"min_new_tokens": 9, "eos_token_id": list(range(15))},
        {"eos_token_id": [5, 8, 11, 14, 20, 23]},
        {"exponential_decay_length_penalty": (4, 1.5), "eos_token_id": 5},
        {"max_new_tokens": 3},
    ],
)
def test_generation_settings_do_what_they_do_in_transformers(changes: dict[str, Any]) -> None:
    gpt, prompts = make_decoder(), pad_left(TEXTS, 1)
    gpt.model.generation_config.update(**{"max_new_tokens": 12, "pad_token_id": 1, "eos_token_id": None} | changes)
    theirs = gpt.model.generate(**prompts)[:, prompts["input_ids"].shape[1] :].tolist()
    stop = gpt.model.generation_config.eos_token_id or []
    stop = [stop] if isinstance(stop, int) else stop
    expected = [row[: next((at for at, token in enumerate(row) if token in stop), len(row))] for row in theirs]
    rules = model_rules(gpt, prompts)
    assert texts(drafting(gpt, "0,2", 3), prompts, rules=rules) == expected


def test_a_criterion_is_asked_after_every_token() -> None:
    gpt, prompts = make_decoder(), pad_left(TEXTS)
    free = texts(drafting(gpt, "full", 4), prompts)
    last = free[1][2]
    rules = Rules(criteria=[lambda ids, _: ids[:, -1] == last])
    cut = [row[: row.index(last) + 1] if last in row else row for row in free]
    assert cut != free
    executor = drafting(gpt, "full", 4)
    assert texts(executor, prompts, rules=rules) == cut
    assert [len(usage.layers) for usage in executor.usage] == [len(row) for row in cut]


def test_text_ends_where_the_context_is_full() -> None:
    gpt = make_decoder("gpt2")
    expected = generate(Executor(gpt, full_plan(LAYERS)), pad_left(TEXTS), 1000).tokens
    assert texts(drafting(gpt, "early:2", 5), pad_left(TEXTS), 1000) == expected
    assert len(expected[1]) == CONTEXT - len(TEXTS[0]) + 1


def test_first_layers_run_once_for_drafts_and_verification() -> None:
    gpt, ran = make_decoder(), []
    executor = drafting(gpt, "early:2", 3)
    for number, layer in enumerate(gpt.layers):
        layer.register_forward_hook(lambda _, given, out, number=number: ran.append((number, given[0].shape[1])))
    executor.prefill(pad_left(TEXTS))
    ran.clear()
    for token in (3, 4, 5):
        executor.draft(torch.tensor([token] * 3))
    executor.verify(torch.tensor([6] * 3))
    assert ran == [(0, 1), (1, 1)] * 4 + [(2, 4), (3, 4)]


def test_a_skipping_plan_runs_again_behind_its_first_gap() -> None:
    gpt, ran = make_decoder(), []
    executor = drafting(gpt, "0,2", 1)
    executor.prefill(pad_left(TEXTS))
    for number, layer in enumerate(gpt.layers):
        layer.register_forward_hook(lambda _, given, out, number=number: ran.append((number, given[0].shape[1])))
    executor.draft(torch.tensor([3] * 3))
    executor.verify(torch.tensor([6] * 3))
    assert ran == [(0, 1), (2, 1), (0, 1), (1, 2), (2, 2), (3, 2)]
    executor.accept([1, 2, 1], [0, 1, 0])
    assert [usage.layers[1:] for usage in executor.usage] == [[9], [4, 5], [9]]
    layer, head = executor.costs.layer, executor.costs.head
    assert executor.usage[0].decode > 9 * layer + 3 * head


def test_the_full_model_accepts_all_that_it_drafts() -> None:
    executor = drafting(make_decoder(), "full", 3)
    texts(executor, pad_left(TEXTS), 21)
    for usage in executor.usage:
        assert (usage.drafted, usage.accepted, usage.judged, usage.passes) == (15, 15, 15, 5)
    assert mean_layers(executor.usage) == LAYERS


def test_the_rule_draws_from_the_target_and_keeps_what_both_share() -> None:
    generator = torch.Generator().manual_seed(0)
    drafts, targets = torch.rand(2, 6, generator=generator).double(), torch.rand(3, 6, generator=generator).double()
    drafts, targets = drafts / drafts.sum(1, keepdim=True), targets / targets.sum(1, keepdim=True)

    def uniform() -> torch.Tensor:
        return torch.rand((), generator=generator, dtype=torch.float64)

    rows = torch.stack([torch.multinomial(row, 5000, True, generator=generator) for row in drafts], dim=1).tolist()
    won = [accepted(row, list(drafts), list(targets), uniform) for row in rows]
    shared = torch.minimum(drafts, targets[:2]).sum(1)
    kept = [sum(len(row) > count for row in won) / len(won) for count in (1, 2)]
    assert kept == pytest.approx([shared[0].item(), shared.prod().item()], abs=0.03)
    for place, target in enumerate(targets):
        counts = torch.tensor([row[place] for row in won if len(row) > place]).bincount(minlength=6)
        assert chisquare(counts.numpy(), (target * counts.sum()).numpy()).pvalue > 1e-4


@torch.no_grad()
def test_sampled_texts_have_the_full_models_distribution() -> None:
    gpt, rows = make_decoder(), 800
    prompts = pad_left([TEXTS[1]] * rows)
    rules = model_rules(
        gpt, prompts, seed=1, do_sample=True, top_k=3, temperature=1.5, repetition_penalty=1.3, max_new_tokens=3
    )
    found = Counter(map(tuple, texts(drafting(gpt, "0,2", 2), prompts, rules=rules)))

    def following(text: list[int]) -> dict[int, float]:
        ids = torch.tensor([text])
        scores = gpt.model(input_ids=ids).logits[:, -1]
        for process in rules.of_rows([0]).processors:
            scores = process(ids, scores)
        return {token: p for token, p in enumerate(scores.softmax(-1)[0].double().tolist()) if p > 0}

    exact = {
        (a, b, c): p * q * r
        for a, p in following(TEXTS[1]).items()
        for b, q in following([*TEXTS[1], a]).items()
        for c, r in following([*TEXTS[1], a, b]).items()
    }
    assert len(exact) == 27
    assert set(found) <= set(exact)
    common = [text for text, p in exact.items() if p * rows >= 5]
    counts = [found[text] for text in common] + [rows - sum(found[text] for text in common)]
    expected = [exact[text] * rows for text in common] + [rows * (1 - sum(exact[text] for text in common))]
    assert chisquare(counts, expected).pvalue > 1e-4


def test_draws_depend_on_the_seed_and_not_on_the_batch() -> None:
    executor, rules = drafting(make_decoder(), "early:2", 2), Rules.sampled(1.5, 0.9, seed=5)
    together = texts(executor, pad_left(TEXTS), 10, rules)
    assert together == texts(executor, pad_left(TEXTS), 10, rules)
    assert together != texts(executor, pad_left(TEXTS), 10, Rules.sampled(1.5, 0.9, seed=50))
    assert together[1:2] == texts(executor, pad_left(TEXTS[1:2]), 10, Rules.sampled(1.5, 0.9, seed=6))


def test_the_number_of_drafts_wins_most_tokens_for_their_cost() -> None:
    """Against the definition: a round of `n` drafts goes on to each next token with the probability of acceptance."""
    for acceptance, cost in product((0.1, 0.5, 0.8, 0.95), (0.1, 0.4, 0.9)):
        worth = []
        for n in range(9):
            tokens = sum((k + 1) * acceptance**k * (1 - acceptance if k < n else 1) for k in range(n + 1))
            worth.append(tokens / (1 + n * cost))
        assert drafts_that_pay(acceptance, cost, 8) == worth.index(max(worth))


def test_without_luck_no_more_is_drafted() -> None:
    executor = drafting(make_decoder("opt_norm_after"), "early:2", None)
    texts(executor, pad_left(TEXTS), 30)
    assert max(usage.drafted for usage in executor.usage) <= 3
    assert executor.next_drafts() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drafts": 0}, "drafts = 0: must be at least 1"),
        ({"plan": parse_plan("early:2", 5)}, r"speculate = '0-1': is of 5 layers, not 4"),
    ],
)
def test_impossible_drafts_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpeculativeExecutor(make_decoder(), **{"plan": parse_plan("early:2", LAYERS)} | given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_no_repeat_ngram_size": 2}, "EncoderNoRepeatNGramLogitsProcessor.*cannot be kept"),
        ({"num_beams": 2}, "beam_search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted_generation"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(changes: dict[str, Any], message: str) -> None:
    gpt, prompts = make_decoder(), pad_left(TEXTS)
    with pytest.raises(UserError, match=message):
        texts(drafting(gpt, "early:2", 2), prompts, rules=model_rules(gpt, prompts, max_new_tokens=3, **changes))


def test_a_state_space_model_is_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": LAYERS, "vocab_size": 30, "state_size": 4, "expand": 2}
    with pytest.raises(UserError, match="mamba"):
        drafting(Gpt(task="tokens", family="mamba", overrides=sizes).eval(), "early:2", 2)
