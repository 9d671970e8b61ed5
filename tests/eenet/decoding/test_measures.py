import math
import re
from unicodedata import normalize

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torchmetrics.functional.text.rouge import rouge_score

from eenet.decoding.measures import (
    ROUGE,
    corpus_bleu,
    perplexity,
    pieces,
    sentence_bleu,
    text_scores,
    token_measures,
    words,
)

TEXTS = [
    ("the cat sat on the mat", "a cat sat on a red mat"),
    ("rates rise again", "bank rates rise"),
    ("nothing shared", "other words entirely"),
    ("exactly this", " exactly this\n"),
]


@pytest.mark.parametrize(("prediction", "reference"), TEXTS)
def test_rouge_agrees_with_the_reference_implementation(prediction: str, reference: str) -> None:
    found = text_scores(prediction, reference)
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    expected = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, prediction)
    for name, score in expected.items():
        assert found[name] == pytest.approx(score.fmeasure, abs=1e-6)
    assert found["exact_match"] == (prediction.strip() == reference.strip())


def test_corpus_bleu_agrees_with_nltk() -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score", reason="nltk is not installed")

    long = [("the cat sat on the red mat today", "the cat sat on a red mat today"), TEXTS[0]]
    references = [[reference.split()] for _, reference in long]
    expected = nltk.corpus_bleu(references, [prediction.split() for prediction, _ in long])
    assert corpus_bleu(*zip(*long, strict=True)) == pytest.approx(expected, abs=1e-6)


@given(st.text(st.characters(max_codepoint=127), max_size=80))
def test_words_of_english_are_those_of_the_reference_implementation(text: str) -> None:
    assert words(text) == re.findall("[a-z0-9]+", text.lower())
    assert pieces(text) == text.split()


ENGLISH = st.lists(st.sampled_from(["The", "cat,", "sat;", "on\u2019s", "it's", "3.5", "\u00a35m"])).map(" ".join)


@given(ENGLISH, ENGLISH)
def test_rouge_of_english_is_torchmetrics(prediction: str, reference: str) -> None:
    expected = rouge_score(prediction, reference, rouge_keys=ROUGE)
    found = text_scores(prediction, reference)
    assert all(found[key] == expected[f"{key}_fmeasure"] for key in ROUGE)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Москва слезам не верит.", ["москва", "слезам", "не", "верит"]),
        ("Größe, Übermut", ["größe", "übermut"]),
        ("हिन्दी की किताबें।", ["हिन्दी", "की", "किताबें"]),
        ("今天很好。", ["今", "天", "很", "好"]),
        ("東京へ行くデータ々ﾃ", [*"東京へ行くデータ々ﾃ"]),
        ("iPhone手机15台", ["iphone", "手", "机", "15", "台"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ไปวัด", [*"ไปวัด"]),
        ("نمی\u200cخواهم، نه", ["نمی\u200cخواهم".replace("\u200c", ""), "نه"]),
        ("co\u00adoperate zero\u200bwidth snake_case", ["cooperate", "zero", "width", "snake", "case"]),
        ("½ ☺ €5", ["5"]),
    ],
)
def test_words_of_any_script(text: str, found: list[str]) -> None:
    assert words(text) == found
    assert words(normalize("NFD", text)) == found


@pytest.mark.parametrize(
    ("prediction", "reference", "shared", "length"),
    [
        ("über", "äber", 0, 1),
        ("Москва слезам не верит", "Москва верит слезам", 2, 7 / 2),
        ("今天天气很好", "今天天气不好", 5, 6),
        ("私は猫が好き", "私は犬が好き", 5, 6),
        ("वह घर गया", "वह घर आया", 2, 3),
    ],
)
def test_rouge_of_any_script_by_hand(prediction: str, reference: str, shared: int, length: float) -> None:
    assert text_scores(prediction, reference)["rougeL"] == pytest.approx(shared / length)
    assert text_scores(reference, reference)["rougeL"] == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1),
        ("yes", "yes", 1),
        ("shares fall after weak results", "shares fall after profit warning", (3 / 5 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
        ("the cat", "the cat sat", math.exp(1 - 3 / 2)),
        ("the the the", "the cat", (1 / 3 * 1 / 3 * 1 / 2 * 1 / 1) ** 0.25),
        ("nothing shared", "other words", 0),
        ("The cat", "the cat", (1 / 2 * 1 / 2) ** 0.25),
        ("今天天气很好", "今天天气不好", (5 / 6 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25),
        ("", "a headline", 0),
        ("a headline", "", 0),
    ],
)
def test_sentence_bleu_by_hand(prediction: str, reference: str, score: float) -> None:
    assert sentence_bleu(prediction, reference) == pytest.approx(score)
    assert text_scores(prediction, reference)["bleu"] == pytest.approx(score)


def test_corpus_bleu_of_a_script_without_spaces() -> None:
    """Matches are 5 of 6, 3 of 5, 2 of 4 and 1 of 3."""
    assert corpus_bleu(["今天天气很好"], ["今天天气不好"]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_an_empty_prediction_scores_nothing() -> None:
    assert set(text_scores("", "a headline").values()) == {0.0}


def test_token_measures_are_the_textbook_sums() -> None:
    torch.manual_seed(0)
    hidden, full = torch.randn(5, 3), torch.randn(5, 3)
    logits, full_logits = torch.randn(5, 7), torch.randn(5, 7)
    targets = torch.tensor([0, 6, 3, 3, 1])
    found = token_measures(hidden, logits, full, full_logits.log_softmax(-1), targets)
    for i in range(5):
        p = [math.exp(v) for v in full_logits[i].tolist()]
        q = [math.exp(v) for v in logits[i].tolist()]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        cosine = sum(a * b for a, b in zip(hidden[i].tolist(), full[i].tolist(), strict=True))
        cosine /= math.dist(hidden[i].tolist(), [0] * 3) * math.dist(full[i].tolist(), [0] * 3)
        assert found["kl"][i].item() == pytest.approx(kl, abs=1e-5)
        assert found["nll"][i].item() == pytest.approx(-math.log(q[targets[i]]), abs=1e-5)
        assert found["similarity"][i].item() == pytest.approx(cosine, abs=1e-5)
        assert found["agreement"][i].item() == (p.index(max(p)) == q.index(max(q)))
    assert perplexity(found["nll"]) == pytest.approx(math.exp(found["nll"].mean().item()), abs=1e-4)
