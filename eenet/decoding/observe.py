"""One pass over texts that measures every plan token by token, and keeps what a controller may read."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.backbones.gpt import Gpt
from eenet.decoding.executor import Prompt, final_hidden, pad_left
from eenet.decoding.measures import token_measures
from eenet.decoding.plans import LayerPlan, early_exit
from eenet.decoding.sequences import Sequences

Table = dict[str, Tensor]
"""Columns, one row for each judged token."""


@torch.no_grad()
def observe(
    gpt: Gpt,
    sequences: Sequences,
    rows: Sequence[int],
    budgets: Sequence[int],
    skipping: Sequence[Sequence[LayerPlan]],
    tokens: int,
    seed: int,
    prompt: Prompt = "full",
    weights: Callable[[LayerPlan], Gpt] | None = None,
) -> Table:
    """Measure some texts, each read once per plan; all early exits come from one pass.

    Args:
        gpt: The decoder, with its language-model head, in evaluation mode.
        sequences: The texts.
        rows: Which of them make the batch.
        budgets: Layers `k` of the early exits, increasing up to all layers.
        skipping: Families of plans that skip layers, each with a plan for each budget.
        tokens: The most judged tokens of a prompt.
        seed: Decides which.
        prompt: Which layers a prompt's tokens run.
        weights: The decoder that runs each plan, where it is another than `gpt`, with whose full plan all are compared.

    Returns:
        `row`: the text, int64 `(tokens,)`; `in_prompt`: whether the predicted token is the prompt's, bool `(tokens,)`;
        `skips`: whether the token that predicts it runs the plan's layers alone, bool `(tokens,)`;
        `states`: hidden states after `k` layers, before any norm, bfloat16 `(tokens, budgets, dim)`; `step`: cosine
        similarity of the `k`-th layer's output with its input, `(tokens, budgets)`; and the columns of
        `token_measures`, each `(tokens, families, budgets)`, early exit being the first family.
    """
    inputs, (place, column, row_of, in_prompt) = judged_tokens(gpt, sequences, rows, tokens, seed)
    prompts = [len(sequences.prompts[row]) for row in rows] if prompt == "full" else None
    read = torch.tensor(prompts or [0] * len(rows), device=column.device)
    skips = inputs["attention_mask"].cumsum(dim=1)[place, column] > read[place]
    targets = inputs["input_ids"][place, column + 1]

    states, steps = read_states(gpt, inputs, place, column, budgets)
    full = gpt.normalise(states[-1])
    full_log_p = gpt.head(full).float().log_softmax(-1)

    def measure(hidden: Tensor, gpt: Gpt = gpt) -> Table:
        return token_measures(hidden, gpt.head(hidden), full, full_log_p, targets)

    def of_exit(state: Tensor) -> Table:
        return measure(gpt.normalise(torch.where(skips[:, None], state, states[-1])))

    exits = {tuple(range(k)): of_exit(state) for k, state in zip(budgets, states, strict=True)}

    def of_plan(plan: LayerPlan) -> Table:
        own = gpt if weights is None else weights(plan)
        if own is gpt and plan.layers in exits:
            return exits[plan.layers]
        return measure(final_hidden(own, inputs, plan, prompts)[place, column], own)

    early = [early_exit(gpt.num_stages, k) for k in budgets]
    families = [[of_plan(plan) for plan in plans] for plans in (early, *skipping)]
    return {
        "row": row_of,
        "in_prompt": in_prompt.bool(),
        "skips": skips,
        "states": torch.stack(states, dim=1).to(torch.bfloat16),
        "step": torch.stack(steps, dim=1),
        **{
            name: torch.stack([torch.stack([found[name] for found in family], dim=1) for family in families], dim=1)
            for name in families[0][0]
        },
    }


def judged_tokens(
    gpt: Gpt, sequences: Sequences, rows: Sequence[int], tokens: int, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of texts and which of its tokens are judged.

    Args:
        gpt: The decoder, on whose device the batch is made.
        sequences: The texts.
        rows: Which of them make the batch.
        tokens: The most judged tokens of a prompt.
        seed: Decides which.

    Returns:
        The batch, padded on the left, and four lists, int64 `(4, tokens)`: each judged token's place in the batch, its
        column, its text's number, and 1 where the token that follows is the prompt's.
    """
    device = next(gpt.parameters()).device
    inputs = {name: value.to(device) for name, value in pad_left([sequences.tokens(row) for row in rows]).items()}
    width = inputs["input_ids"].shape[1]
    index: list[tuple[int, int, int, bool]] = []
    for place, row in enumerate(rows):
        shift = width - len(sequences.tokens(row))
        parts = sequences.positions(row, tokens, seed)
        index += [(place, shift + at, row, part is parts[0]) for part in parts for at in part]
    return inputs, torch.tensor(index, dtype=torch.long, device=device).view(-1, 4).T


def read_states(
    gpt: Gpt, inputs: Mapping[str, Tensor], place: Tensor, column: Tensor, budgets: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states of some tokens of a batch, all layers run.

    Args:
        gpt: The decoder.
        inputs: The batch.
        place: Each token's place in the batch, `(tokens,)`.
        column: Each token's column, `(tokens,)`.
        budgets: Numbers of layers after which states are read, increasing.

    Returns:
        For each budget, the states after that many layers, before any norm, `(tokens, dim)`, and the cosine similarity
        of the last of those layers' output with its input, `(tokens,)`.
    """
    state = gpt.embed(inputs)
    states, steps = [], []
    for layer in range(gpt.num_stages):
        before = state["hidden"]
        state = gpt.run_stage(layer, state)
        if layer + 1 in budgets:
            states.append(state["hidden"][place, column])
            steps.append(F.cosine_similarity(states[-1], before[place, column], dim=-1))
    return states, steps


def join(tables: Sequence[Table]) -> Table:
    """Tables below each other.

    Example:
        >>> join([{"row": torch.tensor([0])}, {"row": torch.tensor([1, 1])}])
        {'row': tensor([0, 1, 1])}
    """
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
