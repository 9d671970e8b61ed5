"""Decoders under the lm-evaluation-harness, beside its own model of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import eenet
from eenet.errors import UserError
from tests._dummies.decoders import CONTEXT, LAYERS, cut_model, greedy, make_decoder

WORDS = [f"w{number}" for number in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_decoder("llama").model.save_pretrained(folder)
    numbers = {word: number for number, word in enumerate([*WORDS, "[UNK]"])}
    plain = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="w29")
    made.save_pretrained(folder)
    return folder


def requests(kind: str, *asked: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, arguments, number) for number, arguments in enumerate(asked)]  # type: ignore[arg-type]


PAIRS = requests(
    "loglikelihood",
    ("w5 w9 w4", " w7"),
    ("w8", " w3 w4 w1"),
    ("", "w2 w6"),
    ("w1 w2 w3 w4 w5 w6 w7", " w8 w9"),
)


def own(folder: Path) -> HFLM:
    """The harness's model, in single requests, which it does not pad."""
    return HFLM(AutoModelForCausalLM.from_pretrained(folder), tokenizer=str(folder), device="cpu", batch_size=1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_all_layers_score_as_the_harness_does(folder: Path, batch_size: int) -> None:
    found = eenet.harness(str(folder), batch_size=batch_size)
    expected = own(folder)
    for (likelihood, best), (reference, also_best) in zip(
        found.loglikelihood(PAIRS, disable_tqdm=True), expected.loglikelihood(PAIRS, disable_tqdm=True), strict=True
    ):
        assert likelihood == pytest.approx(reference, abs=1e-4)
        assert best == also_best
    long = " ".join(WORDS[number % 29] for number in range(2 * CONTEXT + 5))
    rolling = requests("loglikelihood_rolling", (long,), ("w4 w5",))
    assert found.loglikelihood_rolling(rolling) == pytest.approx(
        expected.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-3
    )
    assert found.layers_mean == LAYERS


def test_tokens_that_are_scored_run_what_generated_ones_run(folder: Path) -> None:
    skipping = eenet.harness(str(folder), plan="0,2", prompt_layers="plan", keys="absent")
    cut = cut_model(make_decoder("llama"), (0, 2))
    ((likelihood, _),) = skipping.loglikelihood(PAIRS[:1], disable_tqdm=True)
    with torch.no_grad():
        log_p = cut(torch.tensor([[5, 9, 4]])).logits[0, -1].log_softmax(-1)
    assert likelihood == pytest.approx(log_p[7].item(), abs=1e-4)
    full_prompt = eenet.harness(str(folder), plan="0,2")
    ((after, _),) = full_prompt.loglikelihood(PAIRS[:1], disable_tqdm=True)
    ((everything, _),) = eenet.harness(str(folder)).loglikelihood(PAIRS[:1], disable_tqdm=True)
    assert len({round(value, 4) for value in (likelihood, after, everything)}) == 3
    assert full_prompt.layers_mean == 2


def test_texts_end_where_the_task_says(folder: Path) -> None:
    asked = requests(
        "generate_until",
        ("w5 w9 w4", {"until": ["w99"], "max_gen_toks": 6}),
        ("w7", {"until": ["w99"], "max_gen_toks": 6}),
    )
    found = eenet.harness(str(folder), batch_size=2).generate_until(asked)
    texts = [greedy(cut_model(make_decoder("llama"), tuple(range(LAYERS))), prompt, 6) for prompt in ([5, 9, 4], [7])]
    ends = [next((place for place, token in enumerate(row) if token in (2, 29)), len(row)) for row in texts]
    assert [text.split() for text in found] == [
        [WORDS[t] for t in row[:end]] for row, end in zip(texts, ends, strict=True)
    ]
    third = found[0].split()[2]
    (short,) = eenet.harness(str(folder)).generate_until(
        requests("generate_until", ("w5 w9 w4", {"until": third, "max_gen_toks": 6}))
    )
    assert short.strip() == found[0].split(third)[0].strip()


@pytest.mark.slow
def test_a_task_of_ones_own_is_evaluated(folder: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = [{"question": f"w{n} w{n + 1}", "choices": ["w3", "w8"], "answer": n % 2} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "words.yaml").write_text(
        "task: words\ndataset_path: json\noutput_type: multiple_choice\ntest_split: train\n"
        f"dataset_kwargs: {{data_files: {tmp_path / 'rows.jsonl'}}}\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\ndoc_to_choice: "{{choices}}"\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = eenet.harness(str(folder), batch_size=4)
    found = lm_eval.simple_evaluate(model=model, tasks=["words"], task_manager=tasks, bootstrap_iters=0)
    pairs = [[(row["question"], f" {choice}") for choice in row["choices"]] for row in rows]
    scores = [[own(folder).loglikelihood(requests("loglikelihood", pair))[0][0] for pair in both] for both in pairs]
    right = [int(first < second) == row["answer"] for (first, second), row in zip(scores, rows, strict=True)]
    assert found["results"]["words"]["acc,none"] == sum(right) / len(rows)


def test_what_the_harness_cannot_use_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size = 0"):
        eenet.harness(str(folder), batch_size=0)
    with pytest.raises(UserError, match="plan"):
        eenet.harness(str(folder), plan="early:99")
    make_decoder("llama").model.save_pretrained(tmp_path)
    plain = Tokenizer(models.WordLevel({"w0": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no token that ends a text"):
        eenet.harness(str(tmp_path))
