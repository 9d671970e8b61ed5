"""`eenet generate MODEL|RUN`: text from a decoder that runs some of its layers, streamed to the screen."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import auto_cli

from eenet.backbones import Gpt
from eenet.backbones.huggingface import load_tokenizer
from eenet.cli.parsing import Parser
from eenet.decoding import (
    DecoderNetwork,
    Executor,
    ExitingExecutor,
    Fill,
    RoutedExecutor,
    Sampling,
    Usage,
    confidence_rule,
    mean_layers,
    pad_left,
    parse_plan,
    stream,
)
from eenet.errors import UserError
from eenet.reporting import write_json


def main(args: list[str]) -> None:
    """Run `eenet generate` with some arguments."""
    auto_cli(generate, args=args, prog="eenet generate", parser_class=Parser)


def generate(
    model: str,
    plan: str = "full",
    prompt: str | None = None,
    input: Path | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
    confidence: float | None = None,
    fill: Fill = "project",
    point: str | None = None,
    ckpt_path: str = "last",
    summary: Path | None = None,
    download: bool = False,
) -> None:
    """Continue prompts with some of a decoder's layers, or with as many as each token needs.

    Args:
        model: Folder or hub name of a GPT-2, Llama, Qwen2 or OPT model with its tokenizer, or `smollm2`; or the folder
            of a run that trained exits on a decoder, whose tokens then leave at these.
        plan: `full`, `uniform:K`, `early:K`, `random:K:SEED`, or layers from 0 such as `0,1,5-29`.
        prompt: The text to continue.
        input: Text file with a prompt on each line, instead of `prompt`.
        max_new_tokens: The most tokens for each prompt.
        temperature: Divides the logits; 0 picks the most likely token.
        top_p: Draw only from the most likely tokens that together have this probability.
        seed: Of the draws.
        chat: Give the prompt as a user's message, in the model's chat template.
        confidence: Let a token leave the plan early, at the first layer where the most likely next token is ahead of
            the second by this probability.
        fill: Where the keys and values of layers that a token left out come from: `project` or `recompute`.
        point: Of a run, which point of `eenet calibrate` decides where tokens leave; by default the run's own.
        ckpt_path: Of a run, which checkpoint: `last`, `best` or a file.
        summary: JSON file for the texts, layers per token, MACs per token of prompt and decoding, and tokens per
            second.
        download: Allow a hub name to be downloaded.

    Raises:
        UserError: No such model, run, point or prompt, or a plan that the model cannot run.
    """
    sampling, prompts = Sampling(temperature, top_p, seed), read_prompts(prompt, input)
    if Path(model, "config.yaml").is_file():
        if (plan, confidence) != ("full", None):
            raise UserError("plan", plan, "a run's exits decide which layers run; leave --plan and --confidence out")
        executor, tokenizer, head = open_decoder(model, point, fill, ckpt_path)
    else:
        if point is not None:
            raise UserError("point", point, "is for the folder of a run that trained exits on a decoder")
        gpt, tokenizer = open_model(model, download)
        layers = parse_plan(plan, gpt.num_stages)
        head = {"plan": str(layers)}
        if confidence is None:
            executor = Executor(gpt, layers)
        else:
            executor = ExitingExecutor(gpt, layers, confidence_rule(gpt, confidence), fill)
    texts = [encode(tokenizer, text, chat) for text in prompts]
    written = [write(executor, tokenizer, ids, max_new_tokens, sampling) for ids in texts]
    if summary is not None:
        write_json(summary, {"model": model, **head, **summarise(prompts, written)})


def open_model(model: str, download: bool) -> tuple[Gpt, Any]:
    """A decoder and its tokenizer.

    Raises:
        UserError: No such model.
    """
    try:
        return Gpt(task="tokens", pretrained=model, download=download).eval(), load_tokenizer(model, download)
    except UserError as error:
        raise UserError("model", model, error.problem) from error


def open_decoder(folder: str, point: str | None, fill: Fill, checkpoint: str) -> tuple[Executor, Any, dict[str, str]]:
    """What generates with the exits of a run, the tokenizer, and which operating point decides.

    Raises:
        UserError: The run trained no exits on a decoder, or has no such point.
    """
    from eenet.cli.runs import chosen_point, open_run

    run = open_run(folder, read_data=False, checkpoint=checkpoint)
    if not isinstance(run.model.network, DecoderNetwork):
        raise UserError("model", folder, "is a run without a decoder; configs/bbc_headlines has some with one")
    chosen = chosen_point(run, point)
    network = cast(DecoderNetwork, chosen.point.network(run.model.network))
    executor = RoutedExecutor(network, chosen.point.policy.to(run.device), fill)
    data: Any = run.data
    return executor, data.tokenizer, {"point": chosen.name}


def read_prompts(prompt: str | None, input: Path | None) -> list[str]:
    """The prompts of the command line.

    Raises:
        UserError: None or two sources, no such file, or an empty prompt.
    """
    if (prompt is None) == (input is None):
        raise UserError("prompt", prompt, "give either a text with --prompt or a file with --input")
    if input is None:
        texts = [prompt or ""]
    elif input.is_file():
        texts = input.read_text(encoding="utf-8").splitlines() or [""]
    else:
        raise UserError("input", str(input), "no such file; give a text file with a prompt on each line")
    if empty := [number for number, text in enumerate(texts, start=1) if not text.strip()]:
        raise UserError("prompt", "", f"prompt {empty[0]} of {len(texts)} is empty; give at least one word")
    return texts


def encode(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """Token numbers of a prompt.

    Raises:
        UserError: A chat is asked for and the tokenizer has no template.
    """
    if not chat:
        return tokenizer(text)["input_ids"]
    if tokenizer.chat_template is None:
        raise UserError("chat", True, "the model's tokenizer has no chat template; leave --chat out")
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]


@dataclass
class Written:
    """A text that was generated.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        tokens: New token numbers.
        text: The new text.
        prefill_seconds: Until the first token was known.
        decode_seconds: From then on.
        usage: MACs and layers.
    """

    prompt_tokens: int
    tokens: list[int]
    text: str
    prefill_seconds: float
    decode_seconds: float
    usage: Usage


def write(executor: Executor, tokenizer: Any, ids: list[int], max_new_tokens: int, sampling: Sampling) -> Written:
    """Generate after one prompt and print every word as soon as it is whole."""
    from transformers import TextStreamer

    printer = TextStreamer(tokenizer, skip_special_tokens=True)
    tokens: list[int] = []
    times = [time.perf_counter()]
    for step in stream(executor, pad_left([ids]), max_new_tokens, stop_tokens(executor.gpt, tokenizer), sampling):
        times.append(time.perf_counter())
        tokens += (token for _, token in step)
        printer.put(torch.tensor(tokens[-1:]))
    times.append(time.perf_counter())
    printer.end()
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Written(len(ids), tokens, text, times[1] - times[0], times[-1] - times[1], executor.usage[0])


def stop_tokens(gpt: Gpt, tokenizer: Any) -> set[int]:
    """Token numbers that end a text, by the model's generation settings and by its tokenizer."""
    settings = gpt.model.generation_config.eos_token_id
    named: Iterable[int | None] = settings if isinstance(settings, list) else [settings]
    return {token for token in (*named, tokenizer.eos_token_id) if token is not None}


def summarise(prompts: list[str], written: list[Written]) -> dict[str, Any]:
    """Plain JSON values: means over all prompts, and every text.

    `layers_mean` is per predicted token. MACs of prefill are per prompt token and hold the first head; those of
    decoding are per later token and hold its head, fill and exit rule. `tokens_per_second` is of decoding alone.
    """
    read = sum(text.prompt_tokens for text in written)
    steps = sum(len(text.usage.layers) - 1 for text in written)
    later = sum(text.usage.total - text.usage.prefill for text in written)
    seconds = sum(text.decode_seconds for text in written)
    return {
        "layers_mean": mean_layers([text.usage for text in written]),
        "prefill_macs_per_token": sum(text.usage.prefill for text in written) / read,
        "decode_macs_per_token": later / steps if steps else None,
        "tokens_per_second": steps / seconds if steps else None,
        "texts": [{"prompt": prompt, **asdict(text)} for prompt, text in zip(prompts, written, strict=True)],
    }
