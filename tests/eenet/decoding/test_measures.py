import math

import pytest
import torch

from eenet.decoding.measures import corpus_bleu, perplexity, text_scores, token_measures

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
