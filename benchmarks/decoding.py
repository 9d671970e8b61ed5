"""How fast a decoder generates with all and with some of its layers.

    python benchmarks/decoding.py full              # the full plan against transformers' own generate
    python benchmarks/decoding.py skipping          # k of N layers against the ideal share
    python benchmarks/decoding.py exits RUN [max-disagreement-0.1]   # a run's exits against its full model

Prints JSON; `--output` writes it, too. Rounds are interleaved and every ratio is the median of the rounds' ratios. Each
is given in wall-clock time and in the process's CPU time: on a machine that is not idle only the second is steady.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from report import finish

from eenet.api.opening import chosen_point, open_run
from eenet.backbones import Gpt
from eenet.decoding import (
    Executor,
    RoutedExecutor,
    count_decoder,
    full_plan,
    generate,
    pad_left,
    uniform_skipping,
)
from eenet.decoding.judging import full_executor

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Seconds = dict[str, float]


def load(model: str) -> Gpt:
    torch.manual_seed(0)
    return Gpt(task="tokens", pretrained=model).eval()


def make_prompts(gpt: Gpt, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random prompts, each shorter than the one before, so that a batch is padded."""
    return pad_left([torch.randint(5, gpt.num_classes, (length - 4 * row,)).tolist() for row in range(batch)])


def timed(function: Callable[[], Any]) -> Seconds:
    starts = {name: clock() for name, clock in CLOCKS.items()}
    function()
    return {name: clock() - starts[name] for name, clock in CLOCKS.items()}


def full(
    model: str = "smollm2",
    batches: list[int] | None = None,
    rounds: int = 7,
    prompt: int = 64,
    new_tokens: int = 32,
    output: Path | None = None,
) -> None:
    """Seconds to generate with the full plan divided by those of `model.generate`, prompts included.

    Args:
        model: As for `eenet generate`.
        batches: Batch sizes, 1 and 8 by default.
        rounds: Pairs of generations.
        prompt: Tokens of the longest prompt.
        new_tokens: Tokens to generate.
        output: JSON file.
    """
    gpt = load(model)
    executor = Executor(gpt, full_plan(gpt.num_stages), count_decoder(gpt))
    greedy = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    found = {}
    for batch in batches or [1, 8]:
        prompts = make_prompts(gpt, batch, prompt)
        runs = {
            "eenet": lambda prompts=prompts: generate(executor, prompts, new_tokens),
            "transformers": lambda prompts=prompts: gpt.model.generate(**prompts, **greedy),
        }
        times = interleave(runs, rounds)
        found[f"batch_{batch}"] = {
            "seconds": times,
            "ratio": {clock: median_ratio(times["eenet"], times["transformers"], clock) for clock in CLOCKS},
        }
    finish({"model": model, "goal": "ratio at most 1.05", **found}, output)


def skipping(
    model: str = "smollm2",
    layers: list[int] | None = None,
    batches: list[int] | None = None,
    rounds: int = 7,
    prompt: int = 64,
    new_tokens: int = 16,
    output: Path | None = None,
) -> None:
    """Tokens per second of decoding with k of N layers, divided by the ideal.

    The ideal step takes the head's time and k/N of all the rest of a full step, both measured in the same round.

    Args:
        model: As for `eenet generate`.
        layers: Numbers of layers, a third, two thirds and all but one by default.
        batches: Batch sizes, 1 and 8 by default.
        rounds: Rounds over all plans.
        prompt: Tokens of the longest prompt.
        new_tokens: Steps that are timed.
        output: JSON file.
    """
    gpt = load(model)
    costs, every = count_decoder(gpt), gpt.num_stages
    numbers = layers or [every // 3, 2 * every // 3, every - 1]
    found = {}
    for batch in batches or [1, 8]:
        prompts = make_prompts(gpt, batch, prompt)
        hidden = torch.randn(batch, gpt.feature_dims[-1])
        plans = {k: uniform_skipping(gpt.num_stages, k) for k in [*numbers, every]}
        runs = {
            f"{k} layers": Decoding(Executor(gpt, plan, costs, "plan", "absent"), prompts, new_tokens)
            for k, plan in plans.items()
        }
        head = Head(runs[f"{every} layers"].executor, hidden, new_tokens)
        times = interleave({**runs, "head": head}, rounds)
        found[f"batch_{batch}"] = {
            "tokens_per_second": {
                name: batch * new_tokens / statistics.median(row["wall"] for row in times[name]) for name in runs
            },
            "head_share": {clock: median_ratio(times["head"], times[f"{every} layers"], clock) for clock in CLOCKS},
            "share_of_ideal": {
                f"{k} layers": {clock: share_of_ideal(times, k, every, clock) for clock in CLOCKS} for k in numbers
            },
        }
    finish({"model": model, "goal": "share_of_ideal at least 0.9", **found}, output)


def exits(run: str, points: list[str], texts: int = 8, rounds: int = 5, output: Path | None = None) -> None:
    """Tokens per second of a run's points divided by those of its full model, one test text at a time.

    Every text takes as many steps as the full model's own has; its prompt is read beforehand, outside the timing.

    Args:
        run: Folder of a run that trained exits on a decoder.
        points: Of `eenet calibrate`.
        texts: How many of the test prompts.
        rounds: Rounds over all points.
        output: JSON file.
    """
    opened = open_run(run)
    network, prompts = opened.model.network, opened.data.prompts("test")
    chosen = {name: chosen_point(opened, name).point for name in points}
    some = [pad_left([prompts.prompts[row]]) for row in range(texts)]
    steps = [len(generate(full_executor(network), one, prompts.new_tokens, prompts.stop).tokens[0]) for one in some]
    runs = {"full": Texts(lambda: full_executor(network), some, steps)}
    for name, point in chosen.items():
        runs[name] = Texts(lambda point=point: RoutedExecutor(point.network(network), point.policy), some, steps)
    times = interleave(runs, rounds)
    found = {
        name: {
            "tokens_per_second": {
                clock: sum(steps) / statistics.median(row[clock] for row in rows) for clock in CLOCKS
            },
            "speed": {clock: median_ratio(times["full"], rows, clock) for clock in CLOCKS},
            "macs_fraction": runs[name].macs() / runs["full"].macs(),
        }
        for name, rows in times.items()
    }
    finish({"run": run, "steps": sum(steps), "goal": "speed above 1", **found}, output)


class Texts:
    """Some steps of greedy decoding after each of several prompts."""

    def __init__(
        self, executor: Callable[[], Executor], prompts: list[dict[str, torch.Tensor]], steps: list[int]
    ) -> None:
        self.each = [Decoding(executor(), *one) for one in zip(prompts, steps, strict=True)]

    def prepare(self) -> None:
        for text in self.each:
            text.prepare()

    def __call__(self) -> None:
        for text in self.each:
            text()

    def macs(self) -> int:
        """Of all steps of the last round."""
        usages = [text.executor.usage[0] for text in self.each]
        return sum(usage.total - usage.prefill for usage in usages)


class Decoding:
    """Some steps of greedy decoding after prompts that are read beforehand, outside the timing."""

    def __init__(self, executor: Executor, prompts: dict[str, torch.Tensor], steps: int) -> None:
        self.executor, self.prompts, self.steps = executor, prompts, steps

    def prepare(self) -> None:
        self.tokens = self.executor.logits(self.executor.prefill(self.prompts)[:, -1]).argmax(dim=-1)

    @torch.no_grad()
    def __call__(self) -> None:
        for _ in range(self.steps):
            self.tokens = self.executor.logits(self.executor.step(self.tokens)).argmax(dim=-1)


class Head:
    """The final norm, the head and the choice of a token alone."""

    def __init__(self, executor: Executor, hidden: torch.Tensor, steps: int) -> None:
        self.executor, self.hidden, self.steps = executor, hidden, steps

    @torch.no_grad()
    def __call__(self) -> None:
        for _ in range(self.steps):
            self.executor.logits(self.hidden).argmax(dim=-1)


def interleave(runs: dict[str, Any], rounds: int) -> dict[str, list[Seconds]]:
    """Run all once to warm up, then in turn, every other round backwards."""
    times: dict[str, list[Seconds]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            if hasattr(runs[name], "prepare"):
                runs[name].prepare()
            seconds = timed(runs[name])
            if number:
                times[name].append(seconds)
    return times


def median_ratio(above: list[Seconds], below: list[Seconds], clock: str) -> float:
    return statistics.median(a[clock] / b[clock] for a, b in zip(above, below, strict=True))


def share_of_ideal(times: dict[str, list[Seconds]], k: int, every: int, clock: str) -> float:
    rounds = zip(times["head"], times[f"{every} layers"], times[f"{k} layers"], strict=True)
    shares = [(h[clock] + (whole[clock] - h[clock]) * k / every) / some[clock] for h, whole, some in rounds]
    return statistics.median(shares)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli({"full": full, "skipping": skipping, "exits": exits})
