from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from datamodules.continuations import Continuations  # noqa: E402
from datamodules.nlg import NLG  # noqa: E402
from eenet.backbones.gpt import Gpt  # noqa: E402
from eenet.decoding import DecoderNetwork  # noqa: E402
from eenet.errors import UserError  # noqa: E402
from tests._dummies.token_run import write_prompts  # noqa: E402
from tests._dummies.word_decoder import write_decoder  # noqa: E402


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model, file = write_decoder(tmp_path / "model"), write_prompts(tmp_path / "prompts.jsonl")

    def data(task: dict[str, Any] | None = None, **options: Any) -> Continuations:
        values = {"train": file, "test": None, "new_tokens": 6, **(task or {})}
        made = Continuations(NLG(**values), model, **{"val_size": 4, **options})
        made.network = DecoderNetwork(Gpt(task="tokens", pretrained=model), [0, 2]).eval()
        return made

    return data


def test_reference_continuations_are_the_references_and_the_stop_token(make: Any) -> None:
    data = make(continuation="reference")
    table, sequences = data.table("val"), data.prompts("val")
    for row, tokens in enumerate(sequences.continuations):
        assert table.labels[table.texts == row].tolist() == [*tokens[1:], sequences.stop[0]]


@torch.no_grad()
def test_states_are_those_that_the_decoder_has_of_the_text_alone(make: Any) -> None:
    data = make(continuation="reference", text_batch_size=3)
    table, sequences = data.table("val"), data.prompts("val")
    for row, (prompt, tokens) in enumerate(zip(sequences.prompts, sequences.continuations, strict=True)):
        whole = torch.tensor([prompt + tokens])
        found = data.network.backbone.model(input_ids=whole, output_hidden_states=True)
        mine, where = table.states[table.texts == row], slice(len(prompt), None)
        for exit, layer in enumerate((1, 3)):
            torch.testing.assert_close(mine[:, exit], found.hidden_states[layer][0, where], atol=1e-4, rtol=1e-3)
        logits = data.network.backbone.head(data.network.backbone.normalise(mine[:, -1]))
        torch.testing.assert_close(logits, found.logits[0, where], atol=1e-4, rtol=1e-3)


def test_prompt_tokens_are_trained_on_and_not_judged_on(make: Any) -> None:
    plain, more = make(continuation="reference"), make(continuation="reference", prompt_tokens=3)
    assert len(more.table("train")) > len(plain.table("train"))
    assert torch.equal(more.table("val").labels, plain.table("val").labels)


def test_the_parts_share_no_prompt_and_epochs_are_shuffled_alike(make: Any) -> None:
    data = make()
    record = data.split_record()
    assert record["sizes"] == {"train": 8, "val": 4, "test": 12}
    assert len(set(record["digest"].values())) == 3
    first, again = ([labels.tolist() for _, labels in data.train_dataloader()] for _ in range(2))
    assert first == again
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    second = [labels.tolist() for _, labels in loader]
    assert second != first
    first, second = (sorted(label for batch in batches for label in batch) for batches in (first, second))
    assert first == second


@pytest.mark.parametrize(
    ("task", "options", "field"),
    [
        ({}, {"val_size": 12}, "data.val_size = 12"),
        ({}, {"continuation": "other"}, "data.continuation"),
        ({}, {"batch_size": 0}, "data.batch_size"),
        ({"new_tokens": 1}, {}, "data.task.new_tokens"),
        ({"reference": None}, {}, "data.task.new_tokens"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(make: Any, task: Any, options: Any, field: str) -> None:
    with pytest.raises(UserError, match=field):
        make(task, **options).prepare_data()
