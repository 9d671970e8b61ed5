import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from eenet.cli.main import main
from tests._dummies.decoders import CONTEXT, LAYERS, cut_model, greedy, make_decoder

WORDS = [f"w{number}" for number in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_decoder("llama").model.save_pretrained(tmp_path / "model")
    numbers = {word: number for number, word in enumerate([*WORDS, "[UNK]", "abcdef"])}
    plain = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def generate(*arguments: Any) -> None:
    main(["generate", *map(str, arguments)])


def expected(text: str, layers: tuple[int, ...], new: int) -> list[int]:
    return greedy(cut_model(make_decoder("llama"), layers), [WORDS.index(word) for word in text.split()], new)


def until_stop(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


def test_text_is_printed_and_summarised(folder: Path, capsys: pytest.CaptureFixture) -> None:
    summary = folder.parent / "out" / "summary.json"
    plan = ["--plan", "0,2", "--prompt_layers", "plan", "--keys", "absent"]
    generate(folder, *plan, "--prompt", "w5 w9 w4", "--max_new_tokens", 8, "--summary", summary)
    tokens = until_stop(expected("w5 w9 w4", (0, 2), 8))
    assert len(tokens) > 1
    assert capsys.readouterr().out.split() == [WORDS[token] for token in tokens]
    found = json.loads(summary.read_text())
    assert (found["plan"], found["layers_mean"]) == ("0,2", 2)
    assert found["texts"][0]["tokens"] == tokens
    assert found["texts"][0]["prompt_tokens"] == 3
    usage = found["texts"][0]["usage"]
    assert found["prefill_macs_per_token"] == usage["prefill"] / 3
    assert found["decode_macs_per_token"] == usage["decode"] / (len(usage["layers"]) - 1)
    assert found["tokens_per_second"] > 0


def test_a_file_holds_a_prompt_on_each_line(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "prompts.txt").write_text("w5 w9\nw7\n")
    generate(folder, "--input", folder / "prompts.txt", "--max_new_tokens", 5)
    texts = [until_stop(expected(text, tuple(range(LAYERS)), 5)) for text in ("w5 w9", "w7")]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [[WORDS[t] for t in row] for row in texts]


def test_prompts_of_a_file_are_continued_together(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "prompts.txt").write_text("w5 w9\nw7\nw8 w3 w4\n")
    for options in ([], ["--batch_size", 2, "--dtype", "float64"]):
        generate(folder, "--input", folder / "prompts.txt", "--max_new_tokens", 5, "--plan", "0,2", *options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:]


def test_the_models_own_generation_settings_hold(folder: Path, capsys: pytest.CaptureFixture) -> None:
    generate(folder, "--prompt", "w5 w9 w4")
    usual = capsys.readouterr().out.split()
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [2, WORDS.index(usual[0])]}))
    generate(folder, "--prompt", "w5 w9 w4", "--max_new_tokens", 20)
    found = capsys.readouterr().out.split()
    assert len(found) == 20
    assert usual[0] not in found


@pytest.mark.parametrize("drafting", [[], ["--speculate", "early:2", "--drafts", 3]])
def test_a_text_ends_with_the_models_stop_string(
    folder: Path, drafting: list[Any], capsys: pytest.CaptureFixture
) -> None:
    usual = expected("w5 w9 w4", tuple(range(LAYERS)), 8)
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": [WORDS[usual[1]]]}))
    for _ in range(2):
        generate(folder, "--prompt", "w5 w9 w4", "--max_new_tokens", 8, *drafting)
        found = capsys.readouterr().out.split()
        assert found == [WORDS[token] for token in usual[:2]]


def test_drafted_text_is_the_full_models_and_says_what_drafting_gave(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    (folder / "prompts.txt").write_text("w5 w9\nw7\n")
    shown = ["--speculate", "0,2", "--drafts", 2, "--batch_size", 2, "--summary", folder / "summary.json"]
    generate(folder, "--input", folder / "prompts.txt", "--max_new_tokens", 9, *shown)
    texts = [until_stop(expected(text, tuple(range(LAYERS)), 9)) for text in ("w5 w9", "w7")]
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [[WORDS[t] for t in row] for row in texts]
    found = json.loads((folder / "summary.json").read_text())
    assert (found["plan"], found["speculate"]) == ("0-3", "0,2")
    usages = [text["usage"] for text in found["texts"]]
    assert found["speculation"]["acceptance"] == sum(u["accepted"] for u in usages) / sum(u["judged"] for u in usages)
    steps = sum(len(usage["layers"]) - 1 for usage in usages)
    assert found["speculation"]["tokens_per_pass"] == steps / sum(usage["passes"] for usage in usages)
    assert f"{found['layers_mean']:.1f} layers per token" in err


@pytest.mark.parametrize("fill", ["project", "recompute"])
def test_confident_tokens_leave_early(folder: Path, fill: str) -> None:
    summary = folder / "summary.json"
    generate(folder, "--prompt", "w5", "--confidence", 0, "--fill", fill, "--max_new_tokens", 4, "--summary", summary)
    assert set(json.loads(summary.read_text())["texts"][0]["usage"]["layers"][1:]) == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "w5", "--plan", "0,9"], "plan = '0,9': the decoder has layers 0 to 3"),
        (["--prompt", "w5", "--plan", "2,0"], "in order, such as 0,2"),
        (["--prompt", " "], "prompt = '': prompt 1 of 1 is empty"),
        ([], "either a text with --prompt or a file with --input"),
        (["--input", "nowhere.txt"], "input = 'nowhere.txt': no such file"),
        (["--prompt", "w5 " * (CONTEXT + 1)], f"{CONTEXT} at most"),
        (["--prompt", "w5", "--max_new_tokens", "0"], "max_new_tokens = 0"),
        (["--prompt", "w5", "--temperature", "-1"], "temperature = -1.0"),
        (["--prompt", "w5", "--chat", "true"], "no chat template"),
        (["--prompt", "w5", "--device", "cuda:99"], "device = 'cuda:99': is not on this machine"),
        (["--prompt", "w5", "--dtype", "int7"], "dtype = 'int7'"),
        (["--prompt", "w5", "--confidence", "2"], "threshold = 2"),
        (["--prompt", "w5", "--speculate", "early:5"], "plan = 5: a plan runs 1 to 4 of the decoder's layers"),
        (["--prompt", "w5", "--speculate", "0,2", "--drafts", "0"], "drafts = 0: must be at least 1"),
        (["--prompt", "w5", "--drafts", "2"], "drafts = 2: are of --speculate"),
        (["--prompt", "w5", "--speculate", "0,2", "--plan", "0,1"], "speculate = '0,2': the full model decides"),
    ],
)
def test_mistakes_are_one_clear_line(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        generate(folder, *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_models_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=30, **sizes)).save_pretrained(tmp_path)
    for model, message in ((tmp_path, "is no language model"), ("nobody/nothing", "model =")):
        with pytest.raises(SystemExit) as end:
            generate(model, "--prompt", "w5")
        assert end.value.code == 2
        assert message in capsys.readouterr().err
