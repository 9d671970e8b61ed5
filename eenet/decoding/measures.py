"""How close a layer plan stays to the full model: token by token, and by the text that it generates."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from unicodedata import category, name, normalize

from torch import Tensor
from torch.nn import functional as F

ROUGE = ("rouge1", "rouge2", "rougeL")
"""Overlaps of words, of pairs of words, and the longest common subsequence; rougeLsum would need a download."""

UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts without spaces between words, as the names of their characters begin."""


def words(text: str) -> list[str]:
    """The words that ROUGE compares: runs of letters, combining marks and digits of any script, in lower case.

    Each character of a script without spaces is a word. English text gives what `rouge_score` finds in it, `[a-z0-9]+`.

    Example:
        >>> words("Don't, Über-Größe 42: 日本 हिन्दी")
        ['don', 't', 'über', 'größe', '42', '日', '本', 'हिन्दी']
    """
    return "".join(map(_word_part, normalize("NFC", text.lower()))).split()


def pieces(text: str) -> list[str]:
    """The words that BLEU compares: what white space parts, and each character of a script without spaces.

    Example:
        >>> pieces("Don't stop. 日本!")
        ["Don't", 'stop.', '日', '本', '!']
    """
    return "".join(f" {mark} " if _unspaced(mark) else mark for mark in normalize("NFC", text)).split()


@cache
def _word_part(mark: str) -> str:
    kind = category(mark)
    if kind[0] in "LM" or kind in ("Nd", "Nl"):
        return f" {mark} " if _unspaced(mark) else mark
    # Invisible joiners and soft hyphens are inside words; a space without width is between them.
    return "" if kind == "Cf" and mark != "\u200b" else " "


@cache
def _unspaced(mark: str) -> bool:
    return name(mark, "").startswith(UNSPACED)


def token_measures(
    hidden: Tensor, logits: Tensor, full_hidden: Tensor, full_log_p: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Compare a plan's predictions with the full model's, and with the text.

    Args:
        hidden: What the head reads, `(tokens, dim)`.
        logits: `(tokens, vocabulary)`.
        full_hidden: The full model's, `(tokens, dim)`.
        full_log_p: The full model's log-probabilities, `(tokens, vocabulary)`.
        targets: The tokens that follow in the text, `(tokens,)`.

    Returns:
        Each `(tokens,)`: cosine `similarity` of the hidden states, `agreement` of the most probable tokens (0 or 1),
        `nll` of the target in nats, whose mean's exponential is the perplexity, and `kl`, the divergence of the plan's
        distribution from the full model's in nats.

    Example:
        >>> import torch
        >>> one, log_p = torch.ones(1, 2), torch.tensor([[0.5, 0.5]]).log()
        >>> found = token_measures(one, log_p, one, log_p, torch.tensor([0]))
        >>> {name: round(value.item(), 3) for name, value in found.items()}
        {'similarity': 1.0, 'agreement': 1.0, 'nll': 0.693, 'kl': 0.0}
    """
    log_p = logits.float().log_softmax(-1)
    return {
        "similarity": F.cosine_similarity(hidden.float(), full_hidden.float(), dim=-1),
        "agreement": (log_p.argmax(-1) == full_log_p.argmax(-1)).float(),
        "nll": F.nll_loss(log_p, targets, reduction="none"),
        "kl": F.kl_div(log_p, full_log_p, reduction="none", log_target=True).sum(-1),
    }


def text_scores(prediction: str, reference: str) -> dict[str, float]:
    """Scores of one generated text, from 0 to 1, higher for better.

    Args:
        prediction: The generated text.
        reference: The text that it should be.

    Returns:
        F-measures of `ROUGE` over `words`, `bleu` of the sentence, and `exact_match` after leading and trailing white
        space is removed.

    Example:
        >>> scores = text_scores("the cat sat", "the cat sat down")
        >>> round(scores["rougeL"], 3), scores["exact_match"]
        (0.857, 0.0)
    """
    from torchmetrics.functional.text.rouge import rouge_score

    rouge = rouge_score(prediction, reference, normalizer=str, tokenizer=words, rouge_keys=ROUGE)
    return {
        **{key: float(rouge[f"{key}_fmeasure"]) for key in ROUGE},
        "bleu": sentence_bleu(prediction, reference),
        "exact_match": float(prediction.strip() == reference.strip()),
    }


def sentence_bleu(prediction: str, reference: str, order: int = 4) -> float:
    """BLEU of one text over `pieces`, from 0 to 1, with one added to matches and totals from pairs of words on.

    The smoothing of Lin and Och (2004, section 4.2), which compares texts of fewer words than the order too.

    Example:
        >>> round(sentence_bleu("shares fall after weak results", "shares fall after profit warning"), 4)
        0.4949
    """
    found, wanted = pieces(prediction), pieces(reference)
    if not found:
        return 0.0
    logs = 0.0
    for length in range(1, order + 1):
        grams, others = _grams(found, length), _grams(wanted, length)
        added = length > 1
        matches = (grams & others).total() + added
        if not matches:
            return 0.0
        logs += math.log(matches / (grams.total() + added)) / order
    return math.exp(logs + min(0.0, 1 - len(wanted) / len(found)))


def _grams(tokens: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1))


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a whole set over `pieces`, up to four in a row, unsmoothed (Papineni et al. 2002), from 0 to 1.

    Example:
        >>> round(corpus_bleu(["the cat sat on the mat"], ["the cat sat on the mat"]), 3)
        1.0
    """
    from torchmetrics.functional.text import bleu_score

    found, wanted = ([" ".join(pieces(text)) for text in texts] for texts in (predictions, references))
    return float(bleu_score(found, [[text] for text in wanted]))


def perplexity(nll: Tensor) -> float:
    """Exponential of the mean negative log-likelihood in nats, `(tokens,)`.

    Example:
        >>> import torch
        >>> round(perplexity(torch.tensor([0.5, 0.25]).log().neg()), 3)
        2.828
    """
    return nll.double().mean().exp().item()
