"""How fast drafted and verified text is, beside transformers' own ways and economize's, on headlines of BBC articles.

    python benchmarks/speculation.py texts              # time, text and acceptance, prompt after prompt
    python benchmarks/speculation.py passes             # what drafts and passes take, and the acceptance that would pay

Prints JSON; `--output` writes it, too. All ways continue one batch before the next; a speed is the median over batches
of the time of `model.generate` divided by that of the way, prompts included, in wall-clock and in the process's CPU
time.
"""

import statistics
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from decoding import CLOCKS, Seconds, load, make_prompts, timed
from jsonargparse import auto_cli
from report import finish

from datamodules.nlg import BBCHeadlines
from eenet.api.decoders import open_exit
from eenet.backbones import Gpt
from eenet.backbones.huggingface import load_tokenizer
from eenet.decoding import (
    Executor,
    SpeculativeExecutor,
    count_decoder,
    full_plan,
    generate,
    mean_layers,
    model_rules,
    pad_left,
    parse_plan,
    stream_drafted,
)

Inputs = dict[str, torch.Tensor]
Way = Callable[[Inputs], list[list[int]]]
THEIRS = {"assistant_early_exit": "transformers, exit", "prompt_lookup_num_tokens": "transformers, prompt lookup"}


def texts(
    model: str = "smollm2",
    tokenizer: str = "smollm2",
    drafts: list[str] | None = None,
    exits: str | None = None,
    others: bool = True,
    batch: int = 1,
    prompts: int = 12,
    new_tokens: int = 24,
    output: Path | None = None,
) -> None:
    """Time, text and acceptance of every way.

    Args:
        model: As for `eenet generate`.
        tokenizer: The model's, where its folder has none.
        drafts: Plans with a number of drafts, such as `early:10*3`, or without one for as many as pay.
        exits: Run that trained exits on the model; `early:K` then drafts with the exit there.
        others: Run transformers' and, where it is installed, economize's ways too.
        batch: Prompts at a time; transformers' own ways take one alone.
        prompts: How many.
        new_tokens: The most for each.
        output: JSON file.
    """
    gpt = load(model)
    settings = {"do_sample": False, "max_new_tokens": new_tokens}
    ours = {text: Drafting(gpt, text, exits, settings) for text in drafts or ["early:10*3", "early:10"]}
    ways: dict[str, Way] = {"transformers": Library(gpt, settings), "eenet, all layers": Whole(gpt, settings), **ours}
    if others and batch == 1:
        ways |= {name: Library(gpt, settings | {key: 10 if "exit" in key else 3}) for key, name in THEIRS.items()}
    if others and find_spec("economize"):
        ways |= economize_ways(gpt, settings)
    task = BBCHeadlines(max_prompt_tokens=96, test_size=prompts, train_size=8, seed=0)
    given = task.sequences("test", load_tokenizer(tokenizer)).prompts[:prompts]
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    found: dict[str, list[list[int]]] = {name: [] for name in ways}
    for start in range(0, len(given), batch):
        inputs = pad_left(given[start : start + batch], pad=2)
        if not start:
            for way in ways.values():
                way(inputs)
            for way in ours.values():
                way.usage.clear()
        for name in list(ways)[:: -1 if start // batch % 2 else 1]:
            new: list[list[int]] = []
            times[name].append(timed(partial(extend, new, ways[name], inputs)))
            found[name] += new
    whole = found["transformers"]
    rows = {name: row(times[name], times["transformers"], found[name], whole) for name in ways}
    for name, way in ours.items():
        rows[name] |= way.figures()
    finish({"model": model, "batch": batch, "prompts": len(given), "ways": rows}, output)


def extend(new: list[list[int]], way: Way, inputs: Inputs) -> None:
    new += way(inputs)


def row(times: list[Seconds], theirs: list[Seconds], found: list[list[int]], whole: list[list[int]]) -> dict[str, Any]:
    """Figures of a way: speed beside `generate`, and how many texts are the same to the last token."""
    seconds = sum(time["wall"] for time in times)
    return {
        "speed": {
            clock: statistics.median(b[clock] / a[clock] for a, b in zip(times, theirs, strict=True))
            for clock in CLOCKS
        },
        "tokens_per_second": sum(map(len, found)) / seconds,
        "same_texts": sum(a == b for a, b in zip(found, whole, strict=True)),
    }


class Library:
    """`model.generate`, with whatever settings."""

    def __init__(self, gpt: Gpt, settings: dict[str, Any]) -> None:
        self.gpt, self.settings = gpt, settings

    def __call__(self, inputs: Inputs) -> list[list[int]]:
        tokens = self.gpt.model.generate(**inputs, **self.settings, pad_token_id=2)
        return [before_end(row) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()]


class Whole:
    """Every layer for every token, one by one."""

    def __init__(self, gpt: Gpt, settings: dict[str, Any]) -> None:
        self.gpt, self.settings = gpt, settings
        self.executor = Executor(gpt, full_plan(gpt.num_stages), count_decoder(gpt))

    def __call__(self, inputs: Inputs) -> list[list[int]]:
        return generate(self.executor, inputs, rules=model_rules(self.gpt, inputs, **self.settings)).tokens


class Drafting:
    """Drafted and verified."""

    def __init__(self, gpt: Gpt, text: str, exits: str | None, settings: dict[str, Any]) -> None:
        self.settings = settings
        plan, _, number = text.partition("*")
        drafts = int(number) if number else None
        if exits is not None and plan.startswith("early:"):
            self.executor, _ = open_exit(exits, plan, drafts, "last")
        else:
            layers = parse_plan(plan, gpt.num_stages)
            self.executor = SpeculativeExecutor(gpt, layers, drafts, costs=count_decoder(gpt))
        self.usage: list[Any] = []

    def __call__(self, inputs: Inputs) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in inputs["input_ids"]]
        rules = model_rules(self.executor.gpt, inputs, **self.settings)
        for step in stream_drafted(self.executor, inputs, rules=rules):
            for place, token in step:
                found[place].append(token)
        self.usage += self.executor.usage
        return found

    def figures(self) -> dict[str, Any]:
        """Acceptance of the tokens that were reached, tokens per pass, layers per token."""
        judged = sum(usage.judged for usage in self.usage)
        steps = sum(len(usage.layers) - 1 for usage in self.usage)
        return {
            "acceptance": sum(usage.accepted for usage in self.usage) / judged if judged else None,
            "judged": judged,
            "tokens_per_pass": steps / sum(usage.passes for usage in self.usage),
            "layers_per_token": mean_layers(self.usage),
        }


def economize_ways(gpt: Gpt, settings: dict[str, Any]) -> dict[str, Way]:
    """What economize 0.3.2 has of the same kind: the exit after 10 layers, layer 14 left out, prompt lookup."""
    economize = import_module("economize")
    techniques = {
        "economize, exit": import_module("economize.techniques.early_exit").EarlyExitConfig(10, head="shared"),
        "economize, layer skipped": import_module("economize.techniques.layer_skip").LayerSkipConfig((15,)),
        "economize, prompt lookup": import_module("economize.techniques.lookup").LookupConfig(),
    }

    def way(technique: Any) -> Way:
        model = economize.apply(gpt.model, technique)

        def run(inputs: Inputs) -> list[list[int]]:
            # Its loop keeps a cache of its own, and refuses the `cache` that transformers 5.24 hands it otherwise.
            tokens = model.generate(**inputs, **settings, pad_token_id=2, use_cache=False)
            return [before_end(row) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()]

        return run

    return {name: way(technique) for name, technique in techniques.items()}


def before_end(tokens: list[int], end: int = 2) -> list[int]:
    """A text without its end and what pads it."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


def passes(
    model: str = "smollm2",
    plans: list[str] | None = None,
    batch: int = 1,
    most: int = 6,
    rounds: int = 7,
    prompt: int = 110,
    output: Path | None = None,
) -> None:
    """Time of a drafted token and of passes, as shares of a full step, and the acceptance at which drafting pays.

    Args:
        model: As for `eenet generate`.
        plans: What drafts.
        batch: Prompts at a time.
        most: Drafts, the most.
        rounds: Passes of each number of drafts.
        prompt: Tokens of the longest prompt.
        output: JSON file.
    """
    gpt = load(model)
    costs, inputs = count_decoder(gpt), make_prompts(gpt, batch, prompt)
    token = torch.zeros(batch, dtype=torch.long)
    found = {}
    for plan in plans or ["early:10", "early:15", "uniform:24", "uniform:29"]:
        executor = SpeculativeExecutor(gpt, parse_plan(plan, gpt.num_stages), 1, costs=costs)
        executor.prefill(inputs)
        drafts: list[float] = []
        verified: dict[int, list[float]] = {n: [] for n in range(most + 1)}
        for number in range(rounds + 1):
            for n in verified:
                took = [timed(partial(executor.draft, token))["wall"] for _ in range(n)]
                last = timed(partial(executor.verify, token))["wall"]
                executor.accept([1] * batch, [0] * batch)
                if number:
                    drafts += took
                    verified[n].append(last)
        step = statistics.median(verified[0])
        draft = statistics.median(drafts) / step
        shares = [statistics.median(times) / step for times in verified.values()]
        found[plan] = {"step_seconds": step, "draft": draft, "passes": shares, "acceptance": needed(draft, shares)}
    finish({"model": model, "batch": batch, "plans": found}, output)


def needed(draft: float, shares: list[float]) -> float | None:
    """The least acceptance, in hundredths, at which some number of drafts wins tokens faster than full steps do."""
    for hundredth in range(1, 101):
        gains = [
            sum((hundredth / 100) ** k for k in range(n + 1)) / (n * draft + shares[n]) for n in range(1, len(shares))
        ]
        if max(gains) > 1:
            return hundredth / 100
    return None


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli({"texts": texts, "passes": passes})
