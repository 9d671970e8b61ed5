import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.decoding.store import RowStore, kept_table
from eenet.errors import UserError


def rows_of(numbers: list[int]) -> list[dict]:
    return [{"row": number, "tokens": [number] * number} for number in numbers]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 200))
def test_a_file_cut_anywhere_goes_on_without_loss_or_repetition(cut: int) -> None:
    import tempfile

    store = RowStore(Path(tempfile.mkdtemp()) / "rows.jsonl")
    store.append(rows_of([0, 1]))
    store.append(rows_of([2, 3]))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[: min(cut, len(whole))])
    kept = sorted(store.read())
    computed: list[int] = []

    def compute(numbers: list[int]) -> list[dict]:
        computed.extend(numbers)
        return rows_of(numbers)

    assert store.fill(6, 2, "rows", compute) == rows_of(list(range(6)))
    assert sorted(kept + computed) == list(range(6))
    assert store.path.read_bytes().startswith(whole[: whole[:cut].rfind(b"\n") + 1])
    assert store.fill(6, 2, "rows", compute) == rows_of(list(range(6)))
    assert len(computed) == 6 - len(kept)


def test_tables_are_computed_once_and_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"states": torch.arange(6).view(3, 2).T.to(torch.bfloat16)}

    path = tmp_path / "new" / "table.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            kept_table(path, compute)
    assert not path.exists()
    first = kept_table(path, compute)
    assert torch.equal(kept_table(path, compute)["states"], first["states"])
    assert first["states"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert len(calls) == 2


@pytest.mark.parametrize("content", [b"\xff\n", b"{\n", b"[1]\n", b"{}\n", b"[" * 5000 + b"\n"])
def test_damaged_rows_and_tables_are_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        RowStore(path).read()
    with pytest.raises(UserError, match="is damaged"):
        kept_table(path, dict)
