"""A decoder that leaves out layers as a model of the lm-evaluation-harness (`lm_eval`), which asks for it by text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from eenet.decoding.costs import Usage, mean_layers
from eenet.decoding.executor import Executor, pad_left
from eenet.decoding.generation import Rules, generate, model_rules
from eenet.decoding.routed import follow

NEW_TOKENS = 256
"""The most tokens of a text whose task names no number, as in the harness's own models."""


class HarnessModel(TemplateLM):
    """Scores continuations token by token, and generates, with the layers that an executor runs.

    A token that is scored is predicted as a generated one is: the token before it runs what generated tokens run, and
    only those before that one are the prompt. A context of one token is all prompt. Prompts are padded on the left and
    masked, so that batches change nothing.

    Args:
        executor: Runs the layers.
        tokenizer: The model's; special tokens are added as it does by default.
        batch_size: Requests that run together.

    Attributes:
        usage: What every request has cost so far.
    """

    def __init__(self, executor: Executor, tokenizer: Any, batch_size: int = 1) -> None:
        super().__init__()
        self.executor, self.tokenizer, self.batch_size = executor, tokenizer, batch_size
        self.usage: list[Usage] = []

    @property
    def layers_mean(self) -> float | None:
        """Layers per token that was scored or generated with, `None` before there is one."""
        return mean_layers(self.usage) if self.usage else None

    @property
    def eot_token_id(self) -> int:
        """Number of the token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Number of the token that stands before a text without a context."""
        own = self.tokenizer.bos_token_id
        return self.eot_token_id if own is None else own

    @property
    def max_length(self) -> int:
        """The most tokens that the model reads."""
        return self.executor.gpt.max_tokens

    @property
    def tokenizer_name(self) -> str:
        """Of the tokenizer, for the harness's cache."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token numbers of a text; no second token before a text that has one already."""
        given: dict[str, Any] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        first = self.tokenizer.bos_token
        if add_special_tokens is None and first is not None and string.startswith(first):
            given["add_special_tokens"] = False
        return self.tokenizer.encode(string, **given)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the model's prompt."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Any]:
        """The log-likelihood of continuations of contexts in nats, and whether all their tokens are the likeliest."""

        def judge(chunk: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
            lengths = [len(continuation) for _, continuation in chunk]
            kept = [(context + continuation)[-self.max_length - 1 :] for context, continuation in chunk]
            starts = [max(1, len(tokens) - length - 1) for tokens, length in zip(kept, lengths, strict=True)]
            prompts = [tokens[:start] for tokens, start in zip(kept, starts, strict=True)]
            rest = [tokens[start:] for tokens, start in zip(kept, starts, strict=True)]
            found = follow(self.executor, prompts, rest)
            self.usage += self.executor.usage
            return [
                (-nll[-length:].sum().item(), bool(hit[-length:].all()))
                for (nll, hit), length in zip(found, lengths, strict=True)
            ]

        return self._batched([(context, continuation) for _, context, continuation in requests], judge)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts in nats, each token once, in windows as long as the model reads."""
        windows = [
            (number, make_disjoint_window(window))
            for number, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
        ]
        found = [0.0] * len(requests)
        judged = self._loglikelihood_tokens([("", *window) for _, window in windows])
        for (number, _), (likelihood, _) in zip(windows, judged, strict=True):
            found[number] += likelihood
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts after contexts, up to where a task says that they end."""
        found: dict[int, str] = {}
        asked = sorted(enumerate(request.args for request in requests), key=lambda one: str(one[1][1]))
        for _, group in groupby(asked, key=lambda one: str(one[1][1])):
            rows = list(group)
            settings = rows[0][1][1]
            contexts = [self.tok_encode(context) for _, (context, _) in rows]
            texts = self._batched([(context,) for context in contexts], partial(self._texts, settings))
            found |= {number: text for (number, _), text in zip(rows, texts, strict=True)}
        return [found[number] for number in range(len(requests))]

    def _texts(self, settings: dict[str, Any], chunk: list[tuple[list[int]]]) -> list[str]:
        changes = dict(settings)
        until, most = changes.pop("until", []), changes.pop("max_gen_toks", NEW_TOKENS)
        ends = [until] if isinstance(until, str) else [end for end in until if end]
        if not changes.get("do_sample"):
            changes = {"do_sample": False}
        given = [context[-max(1, self.max_length - most) :] for (context,) in chunk]
        padded = pad_left(given, self.eot_token_id)
        inputs = {name: rows.to(self.executor.gpt.model.device) for name, rows in padded.items()}
        rules = model_rules(self.executor.gpt, inputs, self.tokenizer, max_new_tokens=most, **changes)
        rules = ending(rules, lambda rows: [any(end in text for end in ends) for text in self._decode(rows)], inputs)
        generated = generate(self.executor, inputs, most, (self.eot_token_id,), rules)
        self.usage += generated.usage
        texts = self._decode(generated.tokens)
        return [min((text.split(end)[0] for end in ends), key=len, default=text) for text in texts]

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _batched(self, items: list[Any], run: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """Run items in batches of about equally long contexts, the longest first; results in the order of the items."""
        order = sorted(range(len(items)), key=lambda number: -len(items[number][0]))
        found: dict[int, Any] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            found |= dict(zip(rows, run([items[row] for row in rows]), strict=True))
        return [found[number] for number in range(len(items))]


def ending(rules: Rules, ended: Callable[[list[list[int]]], list[bool]], inputs: dict[str, Tensor]) -> Rules:
    """Rules by which texts end, too, once their new tokens say so."""
    given = inputs["input_ids"].shape[1]

    def criterion(texts: Tensor, _: Any = None, **__: Any) -> Tensor:
        return torch.tensor(ended(texts[:, given:].tolist()), device=texts.device)

    return replace(rules, criteria=[*rules.criteria, criterion])
