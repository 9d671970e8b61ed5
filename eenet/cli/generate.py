"""`eenet generate MODEL|RUN`: text from a decoder that runs some of its layers, streamed to the screen."""

import sys
from pathlib import Path
from typing import Any, Literal

from eenet.errors import UserError
from eenet.parsing.refusals import Parser

MODEL = "decoder's folder or hub name, `smollm2`, a tuned run, an adapter, or a run that trained exits"
PLAN = "full, strided:K, uniform:K, early:K, random:K:SEED, or layers from 0, as 0,1,5-29"


def main(args: list[str]) -> None:
    """Run `eenet generate` with some arguments; a `UserError` for what it refuses."""
    description = "Continue prompts; what is not asked for is as in the model's generation_config.json."
    parser = Parser(prog="eenet generate", description=description)
    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument("--plan", type=str, default="full", help=PLAN)
    parser.add_argument("--prompt", type=str | None, help="text to continue")
    parser.add_argument("--input", type=Path | None, help="text file with a prompt on each line, instead")
    parser.add_argument(
        "--prompt_layers", type=Literal["full", "plan"], default="full", help="layers of a prompt's tokens"
    )
    parser.add_argument(
        "--keys", type=Literal["projected", "absent"], default="projected", help="keys and values of skipped layers"
    )
    parser.add_argument("--max_new_tokens", type=int | None, help="for each prompt; by default the model's, or 128")
    parser.add_argument("--temperature", type=float | None, help="0 picks the most likely token, more draws")
    parser.add_argument("--top_p", type=float | None, help="draw from the most likely tokens of this probability")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--batch_size", type=int, default=1, help="prompts at a time; one alone is printed as it grows")
    parser.add_argument("--chat", type=bool, default=False, help="prompts are messages, in the model's chat template")
    parser.add_argument(
        "--confidence", type=float | None, help="leave where the likeliest token is so far ahead of the second"
    )
    parser.add_argument("--gates", type=str | None, help="run of GateTraining that says which layers a token runs")
    parser.add_argument(
        "--speculate", type=str | None, help="plan that drafts tokens, which all layers verify: the full model's text"
    )
    parser.add_argument("--drafts", type=int | None, help="tokens drafted at a time; by default as many as pay")
    parser.add_argument(
        "--fill", type=Literal["project", "recompute"], default="project", help="keys and values behind an exit"
    )
    parser.add_argument("--point", type=str | None, help="of a run: point of `eenet calibrate`")
    parser.add_argument("--ckpt_path", type=str, default="last", help="of a run: last, best or a file")
    parser.add_argument("--summary", type=Path | None, help="JSON file for texts, layers, MACs and tokens per second")
    parser.add_argument("--download", type=bool, default=False, help="download a model that is not on this machine")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", type=str, default="float32", help="of the weights: float32, bfloat16 or float16")
    options = parser.parse_args(args).as_dict()
    prompts = read_prompts(options.pop("prompt"), options.pop("input"))
    summary, checkpoint = options.pop("summary"), options.pop("ckpt_path")
    from eenet.api.generating import generate
    from eenet.reporting import write_json

    found = generate(prompts=prompts, checkpoint=checkpoint, out=sys.stdout, **options)
    figures = found.summary()
    if (drafting := figures.get("speculation")) is not None:
        print(drafting_line(figures, drafting), file=sys.stderr)
    if summary is not None:
        write_json(summary, {"model": options["model"], **figures})


def drafting_line(figures: dict[str, Any], drafting: dict[str, Any]) -> str:
    """What drafting gave, in one line; without figures where nothing was drafted or decoded."""
    parts = [
        (drafting["acceptance"], "{:.0%} of the drafted tokens that were reached are right"),
        (drafting["tokens_per_pass"], "{:.2f} tokens per pass"),
        (figures["layers_mean"], "{:.1f} layers per token"),
        (figures["tokens_per_second"], "{:.1f} tokens per second"),
    ]
    return ", ".join(text.format(figure) for figure, text in parts if figure is not None)


def read_prompts(prompt: str | None, input: Path | None) -> list[str]:
    """The prompts of the command line; a `UserError` where there are none or two sources, or no such file."""
    if (prompt is None) == (input is None):
        raise UserError("prompt", prompt, "give either a text with --prompt or a file with --input")
    if input is None:
        return [prompt or ""]
    if input.is_file():
        return input.read_text(encoding="utf-8").splitlines() or [""]
    raise UserError("input", str(input), "no such file; give a text file with a prompt on each line")
