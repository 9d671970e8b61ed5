import pytest
import torch
from torch import Tensor

from eenet.backbones.base import select
from eenet.backbones.gpt import Gpt
from eenet.errors import UserError

SMALL = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 30,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GATED = SMALL | {"num_key_value_heads": 1, "intermediate_size": 16, "initializer_range": 0.3}
FAMILIES = {
    "gpt2": SMALL | {"initializer_range": 0.3},
    "llama": GATED,
    "qwen2": GATED | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "opt": SMALL | {"init_std": 0.3, "ffn_dim": 16, "word_embed_proj_dim": 8},
}
TEXTS = [[5, 9, 4, 17, 8, 21], [3, 11, 6], [12, 25, 7, 14]]


def batch(left: bool) -> dict[str, Tensor]:
    rows, masks = [], []
    for text in TEXTS:
        pad = [1] * (6 - len(text))
        rows.append(pad + text if left else text + pad)
        masks.append([0] * len(pad) + [1] * len(text) if left else [1] * len(text) + [0] * len(pad))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True])
def test_a_classifier_gives_what_each_text_gives_alone(family: str, left: bool) -> None:
    gpt = Gpt(4, family=family, overrides=FAMILIES[family]).eval()
    alone = torch.cat([gpt.model(input_ids=torch.tensor([text])).logits for text in TEXTS])
    torch.testing.assert_close(gpt(batch(left)), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True])
def test_a_predictor_gives_what_each_text_gives_alone(family: str, left: bool) -> None:
    gpt = Gpt(task="tokens", family=family, overrides=FAMILIES[family]).eval()
    inputs = batch(left)
    logits = gpt(inputs)
    assert logits.shape == (3, 6, gpt.num_classes)
    alone = torch.cat([gpt.model(input_ids=torch.tensor([text])).logits[0] for text in TEXTS])
    torch.testing.assert_close(logits[inputs["attention_mask"].bool()], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_later_tokens_do_not_reach_earlier_ones(family: str) -> None:
    gpt = Gpt(task="tokens", family=family, overrides=FAMILIES[family]).eval()
    ids = torch.tensor(TEXTS[:1])
    changed = ids.clone()
    changed[0, 3] = 2
    logits, others = gpt({"input_ids": ids}), gpt({"input_ids": changed})
    torch.testing.assert_close(logits[:, :3], others[:, :3], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits[:, 3:], others[:, 3:], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True])
def test_columns_that_nobody_needs_are_dropped(family: str, left: bool) -> None:
    gpt = Gpt(4, family=family, overrides=FAMILIES[family]).eval()
    expected = gpt(batch(left))[[2, 1]]
    state = select(gpt.run_stage(0, gpt.embed(batch(left))), torch.tensor([2, 1]))
    state = gpt.run_stage(1, state)
    assert {value.shape[1] for value in state.values()} == {4}
    torch.testing.assert_close(gpt.classify(gpt.run_stage(2, state)), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_normalise_makes_any_layer_readable_by_the_head(family: str) -> None:
    gpt = Gpt(task="tokens", family=family, overrides=FAMILIES[family]).eval()
    ids = torch.tensor(TEXTS[:1])
    states = [gpt.embed({"input_ids": ids})]
    for i in range(3):
        states.append(gpt.run_stage(i, states[-1]))
    original = gpt.model(input_ids=ids, output_hidden_states=True)
    for state, hidden in zip(states[:-1], original.hidden_states, strict=False):
        torch.testing.assert_close(state["hidden"], hidden, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gpt.head(gpt.normalise(states[-1]["hidden"])), original.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 4, "family": "gtp2"}, "did you mean gpt2"),
        ({"num_classes": 4, "task": "tokens"}, "left out for tokens"),
        ({}, "set for classification"),
        ({"num_classes": 4, "overrides": {"layers": 2}}, "has no such value"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Gpt(**arguments)


def test_texts_longer_than_the_model_are_refused() -> None:
    gpt = Gpt(4, overrides=FAMILIES["gpt2"])
    with pytest.raises(UserError, match="max_length=12"):
        gpt({"input_ids": torch.zeros(1, 13, dtype=torch.long)})
    with pytest.raises(UserError, match="input_ids"):
        gpt({"text": torch.zeros(1, 3)})
