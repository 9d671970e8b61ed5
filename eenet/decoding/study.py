"""The study of layer selection: what is computed once and kept, and the tables and curves made of it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eenet.decoding.costs import DecoderCosts
from eenet.decoding.executor import Executor, Keys, Prompt, check_treatment, pad_left
from eenet.decoding.gating import GatedExecutor, LayerGates, gated_loss
from eenet.decoding.generation import generate
from eenet.decoding.measures import corpus_bleu, perplexity, text_scores
from eenet.decoding.observe import Table, join, observe
from eenet.decoding.oracle import best_at_budgets, cheapest_on_average, cheapest_sufficient, judge
from eenet.decoding.plans import LayerPlan, early_exit, random_layers, strided_skipping, uniform_skipping
from eenet.decoding.prediction import cross_fitted, predictor_curve, rank_correlation
from eenet.decoding.sequences import Sequences
from eenet.decoding.store import RowStore, kept_table
from eenet.decoding.tuning import PlanWeights, text_batch
from eenet.errors import UserError
from eenet.features.key import content_digest
from eenet.metrics import choice_shares
from eenet.progress import tracked

Oracle = Literal["mean", "each"]
"""What a prompt's plan is compared with: `mean`, the best mean score over all prompts at a mean number of layers, a
knapsack, as in arXiv 2410.20022; `each`, the full model's score on that very prompt."""

Families = dict[str, list[LayerPlan]]
"""Plans of each family by its name, one for each budget."""


@dataclass(frozen=True)
class Settings:
    """What decides the study's results beside model and data.

    Attributes:
        budgets: Layers `k` of the plans, increasing; the last is all layers.
        tokens: The most judged tokens of a prompt.
        batch_size: Sequences read or generated at a time.
        seed: Of the judged tokens, the random plans and the folds.
        prompt: Which layers a prompt's tokens run.
        keys: Whether layers that a token skips get its keys and values.
    """

    budgets: tuple[int, ...]
    tokens: int = 48
    batch_size: int = 8
    seed: int = 0
    prompt: Prompt = "full"
    keys: Keys = "projected"

    def check(self, num_layers: int) -> "Settings":
        """These settings, if a decoder of so many layers can use them.

        Raises:
            UserError: Budgets that do not increase from at least 1 up to all layers, a size below 1, or an unknown
                treatment.
        """
        check_treatment(self.prompt, self.keys)
        if list(self.budgets) != sorted(set(self.budgets)) or len(self.budgets) < 2 or self.budgets[0] < 1:
            raise UserError("budgets", self.budgets, "must be at least two increasing numbers of layers from 1")
        if self.budgets[-1] != num_layers:
            raise UserError("budgets", self.budgets, f"the last must be all {num_layers} layers")
        for field in ("tokens", "batch_size"):
            if getattr(self, field) < 1:
                raise UserError(field, getattr(self, field), "must be at least 1")
        return self


SKIPPING = ("strided", "uniform", "random")
"""Families that skip: the authors', one that keeps first and last layer, and layers drawn at random, the control."""


def plan_families(num_layers: int, budgets: Sequence[int], seed: int, skipping: Sequence[str] = SKIPPING) -> Families:
    """Early exit, and families that skip, with a plan for every budget.

    Raises:
        UserError: A family that is not of `SKIPPING`.

    Example:
        >>> {name: str(plans[0]) for name, plans in plan_families(6, [2, 6], seed=0).items()}
        {'early': '0-1', 'strided': '0,3', 'uniform': '0,5', 'random': '3,5'}
    """
    if unknown := [name for name in skipping if name not in SKIPPING]:
        raise UserError("skipping", unknown[0], f"must be some of {', '.join(SKIPPING)}")
    make: dict[str, Callable[[int], LayerPlan]] = {
        "strided": lambda k: strided_skipping(num_layers, k),
        "uniform": lambda k: uniform_skipping(num_layers, k),
        "random": lambda k: random_layers(num_layers, k, seed),
    }
    early = {"early": [early_exit(num_layers, k) for k in budgets]}
    return early | {name: [make[name](k) for k in budgets] for name in SKIPPING if name in skipping}


class Measured:
    """Tokens observed and texts generated, each batch once: what is on disk is not computed again.

    Args:
        weights: The decoders, with their language-model head, in evaluation mode.
        sequences: The texts.
        families: From `plan_families`.
        settings: Of the study.
        folder: Keeps the results, under a key of weights, texts, plans and settings.

    Raises:
        UserError: A text does not fit the decoder's context.
    """

    def __init__(
        self,
        weights: PlanWeights,
        sequences: Sequences,
        families: Families,
        settings: Settings,
        folder: Path,
    ) -> None:
        longest = max(
            max(len(sequences.tokens(row)), len(sequences.prompts[row]) + sequences.new_tokens)
            for row in range(len(sequences))
        )
        if longest > weights.gpt.max_tokens:
            most = weights.gpt.max_tokens
            problem = f"a text has up to {longest} tokens with its continuation, the model takes {most}"
            raise UserError("data.max_prompt_tokens", longest, problem)
        self.weights, self.sequences, self.families = weights, sequences, families
        self.settings, self.folder = settings, folder

    def observed(self) -> Table:
        """The table of `observe` for all texts."""
        settings = self.settings
        plans = {
            name: [(str(plan), self.weights.digest(plan)) for plan in family] for name, family in self.families.items()
        }
        key = _key({"sequences": self.sequences.digest, **asdict(settings), "plans": plans})
        skipping = [family for name, family in self.families.items() if name != "early"]
        tables = []
        for start in tracked(range(0, len(self.sequences), settings.batch_size), "observing texts"):
            rows = range(start, min(start + settings.batch_size, len(self.sequences)))

            def compute(rows: range = rows) -> Table:
                return observe(
                    self.weights.gpt,
                    self.sequences,
                    rows,
                    settings.budgets,
                    skipping,
                    settings.tokens,
                    settings.seed,
                    settings.prompt,
                    self.weights,
                )

            tables.append(kept_table(self.folder / "observed" / key / f"{start:06d}.safetensors", compute))
        return join(tables)

    def generated(self, plan: LayerPlan, costs: DecoderCosts) -> list[dict[str, Any]]:
        """For every prompt its `row`, the generated `tokens` and what they cost: `prefill` and `decode` in MACs.

        `decode` holds the keys and values of skipped layers.
        """
        treatment = self.settings.prompt, self.settings.keys
        content = {"weights": self.weights.digest(plan), "prompt": treatment[0], "keys": treatment[1]}
        return self._generated(str(plan), content, lambda: Executor(self.weights(plan), plan, costs, *treatment))

    def gated(self, gates: LayerGates, costs: DecoderCosts) -> list[dict[str, Any]]:
        """As `generated`, with the layers that gates let run; `decode` holds the gates too."""
        content = {"weights": self.weights.digest(self.families["early"][-1]), "gates": content_digest(gates)}
        return self._generated(gates.reads, content, lambda: GatedExecutor(self.weights.gpt, gates, costs))

    def _generated(self, name: str, content: dict[str, str], make: Callable[[], Executor]) -> list[dict[str, Any]]:
        sequences = self.sequences
        key = _key({**content, "sequences": sequences.digest})
        store = RowStore(self.folder / "generated" / key / f"{name}.jsonl")

        def compute(rows: list[int]) -> list[dict[str, Any]]:
            inputs = pad_left([sequences.prompts[row] for row in rows])
            found = generate(make(), inputs, sequences.new_tokens, sequences.stop)
            return [
                {
                    "row": row,
                    "tokens": tokens,
                    "layers": usage.layers[1:],
                    "prefill": usage.prefill,
                    "decode": usage.total - usage.prefill,
                }
                for row, tokens, usage in zip(rows, found.tokens, found.usage, strict=True)
            ]

        return store.fill(len(sequences), self.settings.batch_size, f"generating with layers {name}", compute)


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def gates_row(measured: Measured, gates: LayerGates, price: float, costs: DecoderCosts, decode: Callable) -> dict:
    """What gates reach on all prompts.

    Returns:
        `reads`, `price`; `reference_perplexity` and the mean layers while references are read, `layers_reading`;
        `layers` per generated token, and the means of `text_row`.
    """
    sequences, size = measured.sequences, measured.settings.batch_size
    losses, shares = [], []
    for start in range(0, len(sequences), size):
        numbers = range(start, min(start + size, len(sequences)))
        batch = text_batch(sequences, numbers).to(next(gates.parameters()).device)
        with torch.no_grad():
            found = gated_loss(measured.weights.gpt, gates, batch)
        by_text = found.losses.cpu().split([len(sequences.continuations[number]) for number in numbers])
        losses += [text[1:] for text in by_text]  # the first token is what the prompt, with all layers, predicts
        shares.append(found.share.item() * len(numbers))
    rows = measured.gated(gates, costs)
    ran = [layers for row in rows for layers in row["layers"]]
    outer = gates.num_layers - len(gates.inner)
    return {
        "reads": gates.reads,
        "price": price,
        "layers_reading": outer + len(gates.inner) * sum(shares) / len(sequences),
        "reference_perplexity": perplexity(torch.cat(losses)),
        "layers": sum(ran) / len(ran) if ran else None,
        **text_row(score_texts(rows, sequences.references, decode), rows, sequences.references),
    }


def observed_curves(table: Table, families: Families) -> dict[str, list[dict[str, float]]]:
    """Token measures of every family and budget.

    Returns:
        For each family a row per budget: `k`, means of `similarity`, `agreement` and `kl` over the judged tokens that
        skip, `prompt_perplexity` where prompts skip, and `reference_perplexity` where there are references.
    """
    skips, curves = table["skips"], {}
    parts = {"prompt_perplexity": table["in_prompt"] & skips, "reference_perplexity": ~table["in_prompt"] & skips}
    for number, (name, plans) in enumerate(families.items()):
        rows = []
        for budget, plan in enumerate(plans):
            column = {key: table[key][:, number, budget] for key in ("similarity", "agreement", "kl", "nll")}
            row = {"k": len(plan), **{key: column[key][skips].double().mean().item() for key in list(column)[:3]}}
            for key, part in parts.items():
                if bool(part.any()):
                    row[key] = perplexity(column["nll"][part])
            rows.append(row)
        curves[name] = rows
    return curves


def score_texts(rows: Sequence[dict[str, Any]], references: Sequence[str], decode: Callable) -> list[dict[str, Any]]:
    """The scores of `text_scores` and the `text` of every generated row."""
    texts = [decode(row["tokens"]) for row in rows]
    return [{"text": text, **text_scores(text, wanted)} for text, wanted in zip(texts, references, strict=True)]


def text_row(scored: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], references: Sequence[str]) -> dict:
    """Means of the text scores, `corpus_bleu`, and MACs per prompt: `prefill_macs` and `decode_macs`."""
    count = len(scored)
    means = {key: sum(row[key] for row in scored) / count for key in scored[0] if key != "text"}
    return {
        **means,
        "corpus_bleu": corpus_bleu([row["text"] for row in scored], references),
        "prefill_macs": sum(row["prefill"] for row in rows) / count,
        "decode_macs": sum(row["decode"] for row in rows) / count,
        "new_tokens": sum(len(row["tokens"]) for row in rows) / count,
    }


def oracle_report(scores: Tensor, budgets: Sequence[int], points: int = 60, oracle: Oracle = "mean") -> dict[str, Any]:
    """What the per-sequence oracle of one family needs and reaches.

    Where the full model scores 0 any plan is at least as good, so the same is given for the other prompts alone.

    Args:
        scores: `(prompts, plans)`, the full model last.
        budgets: Layers of each plan.
        points: Budgets of the reported frontier.
        oracle: What is sufficient.

    Returns:
        `full_score`; `layers` and `layers_fraction` of the cheapest sufficient plans, their `score` and what the same
        choices score in `random` order; `shares` of the plans; `full_scores_zero`, a share; `where_full_scores`, the
        same oracle on the prompts where the full model scores above 0, or `None`; `frontier`, pairs of mean layers and
        the best mean score.
    """
    costs = torch.tensor(list(budgets))
    cheapest = cheapest_on_average if oracle == "mean" else cheapest_sufficient
    chosen = cheapest(scores, costs, full=len(budgets) - 1)
    found = judge(chosen, scores, costs)
    means, best = best_at_budgets(scores, costs)
    picks = torch.linspace(0, len(means) - 1, min(points, len(means))).long()
    positive = scores[:, -1] > 0
    return {
        "full_score": scores[:, -1].double().mean().item(),
        "layers": found["cost"],
        "layers_fraction": found["cost"] / budgets[-1],
        "score": found["score"],
        "random": found["random"],
        "shares": choice_shares(chosen, len(budgets)).tolist(),
        "full_scores_zero": 1 - positive.double().mean().item(),
        "where_full_scores": _where(cheapest, scores[positive], costs) if bool(positive.any()) else None,
        "frontier": [[means[pick].item(), best[pick].item()] for pick in picks],
    }


def _where(cheapest: Callable[..., Tensor], scores: Tensor, costs: Tensor) -> dict[str, float]:
    found = judge(cheapest(scores, costs, full=len(costs) - 1), scores, costs)
    return {"prompts": len(scores), "layers": found["cost"], "layers_fraction": found["cost"] / int(costs[-1])}


def sequence_predictor(table: Table, scores: Tensor, budgets: Sequence[int], seed: int) -> dict[str, Any]:
    """A per-sequence predictor of `k` from the prompt, judged on prompts that it was not fitted on.

    It reads the mean hidden state of the judged prompt tokens after about a quarter of the layers.

    Args:
        table: From `observe`.
        scores: `(prompts, plans)`, the full model last.
        budgets: Layers of each plan.
        seed: Of the folds.

    Returns:
        `read_after`, the layers behind the features; `rank_correlation` of predicted and true `k` of the oracle; and
        `curve`, rows of `judge` for choices by predicted score minus cost.
    """
    costs = torch.tensor(list(budgets))
    read = min(range(len(budgets)), key=lambda place: abs(budgets[place] - budgets[-1] / 4))
    features = prompt_features(table, read, len(scores))
    needs = costs[cheapest_sufficient(scores, costs, full=len(budgets) - 1)].double()
    predicted = cross_fitted(features, torch.cat([scores.double(), needs[:, None]], dim=1), seed)
    return {
        "read_after": budgets[read],
        "rank_correlation": rank_correlation(predicted[:, -1], needs),
        "curve": predictor_curve(predicted[:, :-1], scores, costs),
    }


def prompt_features(table: Table, plan: int, prompts: int) -> Tensor:
    """Mean hidden state of each prompt's judged tokens at one early exit, `(prompts, dim)`."""
    inside = table["in_prompt"]
    rows, states = table["row"][inside], table["states"][inside, plan].double()
    sums = torch.zeros(prompts, states.shape[1], dtype=torch.float64).index_add_(0, rows, states)
    return sums / torch.bincount(rows, minlength=prompts).clamp(min=1)[:, None]
