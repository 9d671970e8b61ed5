"""Text from a decoder that runs some of its layers, or as many as each token needs."""

import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import torch

from eenet.api.decoders import open_executor
from eenet.backbones.huggingface import read_tokens
from eenet.decoding import (
    Executor,
    Fill,
    SpeculativeExecutor,
    SpeculativeUsage,
    Usage,
    mean_layers,
    model_rules,
    pad_left,
    stream,
    stream_drafted,
)
from eenet.decoding.executor import Keys, Prompt
from eenet.decoding.generation import check_sampling
from eenet.errors import UserError


@dataclass
class Written:
    """A text that was generated.

    Attributes:
        prompt: What was given.
        prompt_tokens: Tokens of the prompt.
        tokens: New token numbers.
        text: The new text.
        prefill_seconds: Until the first token of its batch was known.
        decode_seconds: From then on, until the last token of its batch.
        usage: MACs and layers.
    """

    prompt: str
    prompt_tokens: int
    tokens: list[int]
    text: str
    prefill_seconds: float
    decode_seconds: float
    usage: Usage


@dataclass(frozen=True)
class Generated:
    """Texts and what they took.

    Attributes:
        chosen: The plan, with what drafts where tokens are drafted, or the operating point.
        texts: One for each prompt.
        batch_size: Prompts that were continued at a time.
    """

    chosen: dict[str, str]
    texts: list[Written]
    batch_size: int

    def summary(self) -> dict[str, Any]:
        """Plain JSON values: means over all prompts, and every text.

        `layers_mean` is per generated token that was read. MACs of prefill are per prompt token and hold the first
        head; those of decoding are per later token and hold its head, fill and exit rule. `tokens_per_second` is of
        decoding alone, over the batches. Where tokens are drafted, `layers_mean` and MACs hold rejected tokens too, and
        `speculation` says how many drafted tokens were right, of those that were reached, and tokens for each pass.
        """
        read = sum(text.prompt_tokens for text in self.texts)
        steps = sum(len(text.usage.layers) - 1 for text in self.texts)
        later = sum(text.usage.total - text.usage.prefill for text in self.texts)
        seconds = sum(text.decode_seconds for text in self.texts[:: self.batch_size])
        return {
            **self.chosen,
            "layers_mean": mean_layers([text.usage for text in self.texts]),
            "prefill_macs_per_token": sum(text.usage.prefill for text in self.texts) / read,
            "decode_macs_per_token": later / steps if steps else None,
            "tokens_per_second": steps / seconds if steps else None,
            **self._speculation(steps),
            "texts": [asdict(text) for text in self.texts],
        }

    def _speculation(self, steps: int) -> dict[str, Any]:
        drafting = [text.usage for text in self.texts if isinstance(text.usage, SpeculativeUsage)]
        if not drafting:
            return {}
        judged = sum(usage.judged for usage in drafting)
        found = {
            "acceptance": sum(usage.accepted for usage in drafting) / judged if judged else None,
            "drafted": sum(usage.drafted for usage in drafting),
            "tokens_per_pass": steps / sum(usage.passes for usage in drafting) if steps else None,
        }
        return {"speculation": found}


def generate(
    model: str,
    prompts: Sequence[str],
    *,
    plan: str = "full",
    prompt_layers: Prompt = "full",
    keys: Keys = "projected",
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 1,
    chat: bool = False,
    confidence: float | None = None,
    gates: str | None = None,
    fill: Fill = "project",
    point: str | None = None,
    speculate: str | None = None,
    drafts: int | None = None,
    checkpoint: str = "last",
    download: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    out: TextIO | None = None,
) -> Generated:
    """Continue prompts with some of a decoder's layers, with as many as each token needs, or as the whole model does.

    What is not asked for here is as in the model's `generation_config.json`: penalties, suppressed tokens, sampling.

    Args:
        model: Folder or hub name of a decoder of `transformers` with its tokenizer, or `smollm2`; the folder of a run
            that tuned one, or of an adapter of peft; or that of a run that trained exits, at which tokens then leave.
        prompts: Texts to continue.
        plan: `full`, `strided:K`, `uniform:K`, `early:K`, `random:K:SEED`, or layers from 0 such as `0,1,5-29`.
        prompt_layers: Layers of a prompt's tokens: `full` for all, so that only generated tokens skip, or `plan`.
        keys: Whether layers that a token skips still get its keys and values: `projected` or `absent`.
        max_new_tokens: The most tokens for each prompt; by default as the model's settings say, otherwise 128.
        temperature: Divides the logits; 0 picks the most likely token, more draws.
        top_p: Draw only from the most likely tokens that together have this probability.
        seed: Of the draws.
        batch_size: Prompts that are continued at a time.
        chat: Give each prompt as a user's message, in the model's chat template.
        confidence: Let a token leave the plan early, at the first layer where the most likely next token is ahead of
            the second by this probability.
        gates: Run of `GateTraining` whose gates say which layers each generated token runs.
        fill: Where the keys and values of layers that a token left out come from: `project` or `recompute`.
        point: Of a run, which point of `eenet calibrate` decides where tokens leave; by default the run's own.
        speculate: Plan, as for `plan`, that drafts tokens which all layers verify: the text is the full model's. Of a
            run that trained exits `early:K`, for the exit after K layers.
        drafts: Tokens drafted at a time; by default as many as pay.
        checkpoint: Of a run: `last`, `best` or a file.
        download: Allow a hub name to be downloaded.
        device: Where the model runs: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: Of the weights: `float32`, `bfloat16` or `float16`.
        out: Where the texts are written, one alone as it grows; `None` for nowhere.

    Raises:
        UserError: No such model, run, point, device or prompt, a plan that the model cannot run, or generation settings
            that leaving out layers does not allow.
    """
    check_sampling(temperature or 0.0, 1.0 if top_p is None else top_p)
    if batch_size < 1:
        raise UserError("batch_size", batch_size, "must be at least 1")
    check_prompts(prompts)
    executor, tokenizer, chosen = open_executor(
        model,
        plan=plan,
        prompt_layers=prompt_layers,
        keys=keys,
        confidence=confidence,
        gates=gates,
        fill=fill,
        point=point,
        speculate=speculate,
        drafts=drafts,
        checkpoint=checkpoint,
        download=download,
        device=device,
        dtype=dtype,
    )
    length = max_new_tokens or executor.gpt.model.generation_config.max_new_tokens or 128
    settings = {"max_new_tokens": length if max_new_tokens is None else max_new_tokens, "top_p": top_p, "seed": seed}
    if temperature is not None:
        settings |= {"do_sample": temperature > 0} | ({"temperature": temperature} if temperature > 0 else {})
    texts = [
        text
        for start in range(0, len(prompts), batch_size)
        for text in write(executor, tokenizer, prompts[start : start + batch_size], chat, settings, out)
    ]
    return Generated(chosen, texts, batch_size)


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise a `UserError` where there are no prompts, or one is empty."""
    if empty := [number for number, text in enumerate(prompts, start=1) if not text.strip()]:
        raise UserError("prompt", "", f"prompt {empty[0]} of {len(prompts)} is empty; give at least one word")
    if not prompts:
        raise UserError("prompt", "", "there is none; give at least one")


def encode(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """Token numbers of a prompt; a `UserError` where a chat is asked for and the tokenizer has no template."""
    if not chat:
        return tokenizer(text)["input_ids"]
    if tokenizer.chat_template is None:
        raise UserError("chat", True, "the model's tokenizer has no chat template; leave --chat out")
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]


def write(
    executor: Executor,
    tokenizer: Any,
    prompts: Sequence[str],
    chat: bool,
    settings: dict[str, Any],
    out: TextIO | None,
) -> list[Written]:
    """Generate after some prompts, and write the texts: one alone word by word, as soon as each is whole."""
    from transformers import TextStreamer

    gpt = executor.gpt
    given = [encode(tokenizer, text, chat) for text in prompts]
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    padded = pad_left(given, next(pad for pad in pads if pad is not None))
    inputs = {name: rows.to(gpt.model.device) for name, rows in padded.items()}
    read_tokens(inputs, gpt.max_tokens)
    rules = model_rules(gpt, inputs, tokenizer, **settings)
    own = tokenizer.eos_token_id
    printer = TextStreamer(tokenizer, skip_special_tokens=True)
    alone = out is not None and len(prompts) == 1
    tokens: list[list[int]] = [[] for _ in prompts]
    times = [time.perf_counter()]
    steps: Any = stream_drafted if isinstance(executor, SpeculativeExecutor) else stream
    for step in steps(executor, inputs, stop=() if own is None else (own,), rules=rules):
        times.append(time.perf_counter())
        for row, token in step:
            tokens[row].append(token)
            if alone:
                with redirect_stdout(out):
                    printer.put(torch.tensor([token]))
    times.append(time.perf_counter())
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    if alone:
        with redirect_stdout(out):
            printer.end()
    elif out is not None:
        print(*texts, sep="\n", file=out, flush=True)
    first, later = times[1] - times[0], times[-1] - times[1]
    return [
        Written(prompt, len(ids), new, text, first, later, usage)
        for prompt, ids, new, text, usage in zip(prompts, given, tokens, texts, executor.usage, strict=True)
    ]
