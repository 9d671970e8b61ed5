"""Which decoders of `transformers` run with some of their layers left out: a table of every family.

Each family is built small from its own default configuration, with random weights, without a download, and asked what
a user would ask: is it accepted, does the whole model give the library's logits, does a plan without its first layer
give those of a model that never had the others, and is greedy generation of prompts padded on the left, past any
window, token by token that of such a model's `generate`.

    python benchmarks/families.py --rows /tmp/families.jsonl --out docs/studies/decoder_families.md
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from eenet.backbones import Gpt
from eenet.backbones.decoder import cut_model
from eenet.backbones.decoder_proof import LAYERS, difference, shrink, small_model
from eenet.decoding import Executor, LayerPlan, final_hidden, full_plan, generate, pad_left
from eenet.errors import UserError

TEXTS = [[9, 5, 14, 7, 21, 11, 3], [17, 6], [8, 30, 12, 25]]
PLANS = [LayerPlan(layers, LAYERS) for layers in ((0, 1, 2, 3), (1, 3), (0, 2, 3))]
NEW_TOKENS = 10


class Family(NamedTuple):
    """One row of the table; `None` where a family got no further.

    Attributes:
        name: Its `model_type`.
        attention: The implementation that the library chose.
        accepted: eenet takes it.
        exact: The whole model gives the library's logits.
        skip_exact: So does each plan.
        generation_exact: Generation is the same token by token.
        reason: Why it was refused.
    """

    name: str
    attention: str
    accepted: bool
    exact: bool | None = None
    skip_exact: bool | None = None
    generation_exact: bool | None = None
    reason: str = ""


def families() -> list[str]:
    """Every `model_type` with a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small(name: str) -> Any:
    """A small model of a family, in evaluation mode."""
    whole = transformers.AutoConfig.for_model(name)
    if whole.is_encoder_decoder:
        raise ValueError("an encoder and a decoder")
    config = shrink(whole)
    with torch.device("meta"):
        shape = transformers.AutoModelForCausalLM.from_config(config)
    return small_model(shape, config)


@torch.no_grad()
def judge(name: str) -> Family:
    """One family's row."""
    try:
        model = small(name)
    except Exception as error:
        return Family(name, "", False, reason=f"no small copy: {_line(error)}")
    attention = model.config._attn_implementation
    try:
        gpt = Gpt.of(model)
        executor = Executor(gpt, PLANS, prompt="plan")
    except UserError as error:
        return Family(name, attention, False, reason=error.problem)
    errors, same = [], True
    found = generate(executor, pad_left(TEXTS), NEW_TOKENS).tokens
    for plan, tokens, own in zip(PLANS, found, TEXTS, strict=True):
        cut = model if plan == full_plan(LAYERS) else cut_model(model, plan.layers)
        for text in TEXTS:
            logits = gpt.head(final_hidden(gpt, pad_left([text]), plan))
            errors.append(difference(logits, cut(torch.tensor([text])).logits))
        same = same and tokens == greedy(cut, own)
    whole = errors[: len(TEXTS)]
    return Family(name, attention, True, not any(whole), not any(errors), same)


def greedy(model: Any, text: list[int]) -> list[int]:
    """What the library generates from one text."""
    ids = torch.tensor([text])
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": NEW_TOKENS}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(text) :].tolist()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:140]}"


def table(rows: Iterable[Family]) -> str:
    """The table in Markdown."""
    rows = list(rows)
    taken = [row for row in rows if row.accepted]
    exact = [row for row in taken if row.exact and row.skip_exact and row.generation_exact]

    def mark(value: bool | None) -> str:
        return "" if value is None else "yes" if value else "**no**"

    lines = [
        "# Decoders that eenet takes",
        "",
        f"Of the {len(families())} causal language models of transformers {transformers.__version__}, {len(rows)} were",
        f"judged: {len(taken)} are accepted, {len(exact)} of them exact in all three columns.",
        "`python benchmarks/families.py` builds each family small from its default configuration with random weights,",
        "and compares it with a model that has a plan's layers alone: logits within 0.001 of their standard deviation,",
        "and 10 greedy tokens after three prompts padded on the left. One of three plans leaves out the first layer.",
        "",
        "| family | attention | accepted | exact | skip exact | generation exact | refused because |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        marks = [mark(value) for value in row[2:6]]
        reason = row.reason.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {row.name} | {row.attention} | {' | '.join(marks)} | {reason} |")
    return "\n".join(lines) + "\n"


def read_rows(path: Path | None) -> dict[str, Family]:
    """Families that were judged before, by name."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
    return {row.name: row for row in (Family(**json.loads(line)) for line in lines)}


def main() -> None:
    """Judge the families and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="Markdown file; printed if left out")
    parser.add_argument(
        "--rows", type=Path, help="JSON lines, one for each family; those that are there are not judged"
    )
    parser.add_argument("--families", nargs="*", default=families(), help="some of them")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    known = read_rows(options.rows)
    rows = []
    for name in options.families:
        start = time.perf_counter()
        rows.append(known.get(name) or judge(name))
        if name not in known:
            print(f"{time.perf_counter() - start:5.1f} s", *rows[-1], flush=True)
            if options.rows is not None:
                with open(options.rows, "a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]._asdict()) + "\n")
    if options.out is None:
        print(table(rows))
        return
    beside = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    beside.write_text(table(rows), encoding="utf-8")
    os.replace(beside, options.out)


if __name__ == "__main__":
    main()
