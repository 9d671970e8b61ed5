"""Tokenized prompts with their references: what plans, controllers and the oracle are judged on."""

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from eenet.errors import UserError


class TextBatch(NamedTuple):
    """Some prompts with what follows them, padded on the left.

    Attributes:
        input_ids: Token numbers, `(batch, tokens)`.
        attention_mask: 1 on tokens and 0 on padding, `(batch, tokens)`.
        prompts: How many tokens at the beginning of each text are its prompt, `(batch,)`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompts: Tensor

    def to(self, device: torch.device) -> "TextBatch":
        """The batch on a device."""
        return TextBatch(*(part.to(device) for part in self))


@dataclass(frozen=True)
class Sequences:
    """Prompts as the decoder reads them, and what a good continuation is.

    Attributes:
        prompts: Token numbers of every prompt, a chat template applied; none is empty.
        references: Reference text of every prompt, empty where the task is to predict the prompt itself.
        continuations: Token numbers of every reference.
        stop: Token numbers that end a continuation.
        new_tokens: The most tokens generated for a prompt; 0 where nothing is generated.

    Raises:
        UserError: No prompts, an empty one, or lists of different lengths.
    """

    prompts: list[list[int]]
    references: list[str]
    continuations: list[list[int]]
    stop: tuple[int, ...]
    new_tokens: int

    def __post_init__(self) -> None:
        counts = (len(self.prompts), len(self.references), len(self.continuations))
        if counts[0] == 0 or not all(self.prompts):
            raise UserError("data", counts[0], "there must be prompts, and none may be empty")
        if len(set(counts)) > 1:
            raise UserError("data", counts, "prompts, references and continuations differ in number")

    def __len__(self) -> int:
        return len(self.prompts)

    def tokens(self, row: int) -> list[int]:
        """A prompt and its continuation."""
        return self.prompts[row] + self.continuations[row]

    @cached_property
    def digest(self) -> str:
        """32 hex digits that change with any of the content."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]

    @cached_property
    def _template(self) -> tuple[int, int]:
        ends = [common_prefix(lists) for lists in (self.prompts, [prompt[::-1] for prompt in self.prompts])]
        shortest = min(map(len, self.prompts))
        return (ends[0], ends[1]) if sum(ends) < shortest else (0, 0)

    def positions(self, row: int, count: int, seed: int) -> tuple[list[int], list[int]]:
        """Positions whose next token is judged: a sample of the prompt, and all of the continuation.

        What begins and ends every prompt, such as a chat template, is left out of the sample.

        Args:
            row: Which sequence.
            count: The most positions in the prompt.
            seed: Decides the sample.

        Returns:
            Increasing positions in the prompt and in the continuation, the last of which has a next token.

        Example:
            >>> some = Sequences([[0, 1, 2, 9], [0, 3, 4, 9]], ["", "a b"], [[], [5, 6]], (), 2)
            >>> some.positions(1, 8, seed=0)
            ([0, 1], [3, 4])
        """
        before, after = self._template
        length = len(self.prompts[row])
        inside = range(max(before - 1, 0), length - 1 - after)
        sample = random.Random(f"{seed} {row}").sample(inside, min(count, len(inside)))
        return sorted(sample), list(range(length - 1, length - 1 + len(self.continuations[row])))


def common_prefix(lists: list[list[int]]) -> int:
    """How many numbers all lists begin with.

    Example:
        >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]])
        2
    """
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False)))
