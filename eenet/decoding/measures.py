"""How close a layer plan stays to the full model: token by token, and by the text that it generates."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.text import bleu_score
from torchmetrics.functional.text.rouge import rouge_score

ROUGE = ("rouge1", "rouge2", "rougeL")
"""Overlaps of words, of pairs of words, and the longest common subsequence; rougeLsum would need a download."""


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
        F-measures of `ROUGE`, `bleu` of the sentence with add-one smoothing from pairs of words on, and `exact_match`
        after leading and trailing white space is removed.

    Example:
        >>> scores = text_scores("the cat sat", "the cat sat down")
        >>> round(scores["rougeL"], 3), scores["exact_match"]
        (0.857, 0.0)
    """
    rouge = rouge_score(prediction, reference, rouge_keys=ROUGE)
    return {
        **{key: float(rouge[f"{key}_fmeasure"]) for key in ROUGE},
        "bleu": float(bleu_score([prediction], [[reference]], smooth=True)) if prediction.strip() else 0.0,
        "exact_match": float(prediction.strip() == reference.strip()),
    }


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a whole set with up to four words in a row, unsmoothed (Papineni et al. 2002), from 0 to 1.

    Example:
        >>> round(corpus_bleu(["the cat sat on the mat"], ["the cat sat on the mat"]), 3)
        1.0
    """
    return float(bleu_score(list(predictions), [[reference] for reference in references]))


def perplexity(nll: Tensor) -> float:
    """Exponential of the mean negative log-likelihood in nats, `(tokens,)`.

    Example:
        >>> import torch
        >>> round(perplexity(torch.tensor([0.5, 0.25]).log().neg()), 3)
        2.828
    """
    return nll.double().mean().exp().item()
