from collections import Counter
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.nn import functional

from eenet.decoding import (
    LayerPlan,
    early_exit,
    full_plan,
    layer_movement,
    pad_left,
    parse_plan,
    random_layers,
    ranked_skipping,
    uniform_skipping,
)
from eenet.errors import UserError
from tests._dummies.decoders import LAYERS, TEXTS, make_decoder


@pytest.mark.parametrize("num_layers", range(2, 9))
def test_uniform_skipping_spreads_as_evenly_as_any_choice_that_keeps_both_ends(num_layers: int) -> None:
    for k in range(2, num_layers + 1):
        layers = uniform_skipping(num_layers, k).layers
        choices = [(0, *middle, num_layers - 1) for middle in combinations(range(1, num_layers - 1), k - 2)]
        spread = {choice: sorted(b - a for a, b in pairwise(choice)) for choice in choices}
        assert spread[layers] == min(spread.values(), key=lambda gaps: (max(gaps), -min(gaps)))


@given(st.integers(1, 60), st.data())
def test_uniform_skipping_runs_k_layers_first_and_last_among_them(num_layers: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num_layers))
    layers = uniform_skipping(num_layers, k).layers
    assert len(set(layers)) == k
    assert layers[0] == 0
    assert k == 1 or layers[-1] == num_layers - 1


def test_early_exit_and_full_run_a_beginning() -> None:
    assert early_exit(5, 2).layers == (0, 1)
    assert early_exit(5, 5) == full_plan(5)


def test_every_random_set_is_as_likely() -> None:
    counts = Counter(random_layers(5, 2, seed).layers for seed in range(2000))
    assert set(counts) == set(combinations(range(5), 2))
    assert chisquare(list(counts.values())).pvalue > 1e-3


@given(st.lists(st.floats(0, 2), min_size=1, max_size=7, unique=True), st.data())
def test_ranked_skipping_keeps_the_layers_that_move_most(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    best = max(combinations(range(len(scores)), k), key=lambda kept: sorted((scores[i] for i in kept), reverse=True))
    assert ranked_skipping(scores, k).layers == best


@given(st.sets(st.integers(0, 39), min_size=1))
def test_a_plan_is_read_back_from_its_text(layers: set[int]) -> None:
    plan = LayerPlan(tuple(sorted(layers)), 40)
    assert parse_plan(str(plan), 40) == plan


def test_plans_are_parsed() -> None:
    assert parse_plan("full", 6) == full_plan(6)
    assert parse_plan("uniform:3", 6) == uniform_skipping(6, 3)
    assert parse_plan("early:3", 6) == early_exit(6, 3)
    assert parse_plan("random:3:7", 6) == random_layers(6, 3, 7)
    assert parse_plan("0,1,3-5", 6).layers == (0, 1, 3, 4, 5)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "uniform:K"),
        ("uniform", "uniform:K"),
        ("uniform:x", "uniform:K"),
        ("uniform:1:2", "uniform:K"),
        ("random:3", "uniform:K"),
        ("0,", "uniform:K"),
        ("0-1-2", "uniform:K"),
        ("4-2", "uniform:K"),
        ("-1", "uniform:K"),
        ("uniform:0", "1 to 6"),
        ("early:7", "1 to 6"),
        ("0,6", "layers 0 to 5"),
        ("0-999999999999", "layers 0 to 5"),
        ("3,2", "in order, such as 2,3"),
        ("2,2", "in order, such as 2"),
    ],
)
def test_a_plan_that_is_none_says_what_would_be_one(text: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        parse_plan(text, 6)


@pytest.mark.parametrize("layers", [(), (-1, 2), (0, 6), (1, 0), (2, 2)])
def test_an_impossible_plan_is_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="plan"):
        LayerPlan(layers, 6)


@torch.no_grad()
def test_layer_movement_is_the_turn_of_the_hidden_state_over_real_tokens() -> None:
    gpt = make_decoder("llama")
    turns = []
    for text in TEXTS:
        states = gpt.model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states
        turns.append(torch.stack([1 - functional.cosine_similarity(a[0], b[0], dim=-1) for a, b in pairwise(states)]))
    expected = torch.cat(turns, dim=1).mean(dim=1)
    found = layer_movement(gpt, [pad_left(TEXTS[:2]), pad_left(TEXTS[2:])])
    assert len(found) == LAYERS
    torch.testing.assert_close(torch.tensor(found[:-1]), expected[:-1], atol=1e-5, rtol=1e-4)
