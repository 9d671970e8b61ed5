"""Logits in a file give what they give in memory."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from eenet.calibration import LogitFile, fit_scheduler, fit_temperatures, logits, read_exits, scheduler
from eenet.errors import UserError
from eenet.gates import SchedulerGate, UncertaintyGate


@pytest.fixture
def values() -> torch.Tensor:
    return torch.randn(103, 4, 7) + 3 * torch.rand(103, 1, 1) * F.one_hot(torch.arange(103) % 7, 7)[:, None]


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(103) % 7


@pytest.fixture
def stored(values: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitFile:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(logits, "BLOCK_BYTES", 4 * 4 * 7 * 10)
    file = LogitFile(len(values), tmp_path)
    for batch in values.split(32):
        file.append(batch)
    return file


def test_what_is_read_is_what_was_added(stored: LogitFile, values: torch.Tensor) -> None:
    assert stored.shape == values.shape
    for rows in (1, 10, 1000):
        found = list(stored.split(rows))
        assert torch.equal(torch.cat(found), values)
        assert [len(block) for block in found] == [len(block) for block in values.split(rows)]
    stored.append(values[:5].bfloat16())
    assert torch.equal(torch.cat(list(stored.split(50))), torch.cat([values, values[:5].bfloat16().float()]))


def test_the_file_has_no_name_that_a_killed_process_could_leave(stored: LogitFile, tmp_path: Path) -> None:
    assert len(stored)
    assert list(tmp_path.iterdir()) == []


def test_it_lies_on_tmpdir_where_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    assert LogitFile(1, tmp_path).folder == tmp_path / "other"


def test_a_tmpdir_that_is_not_there_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"TMPDIR = .*nowhere': is no folder"):
        LogitFile(1, tmp_path)


def test_a_disk_without_room_is_one_error_before_anything_is_written(
    values: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    file = LogitFile(10_000_000, tmp_path)
    with pytest.raises(UserError, match=r"TMPDIR = .* take 1\.12 GB and 1\.00 GB are free"):
        file.append(values)
    assert not len(file)


def test_temperatures_of_a_file(stored: LogitFile, values: torch.Tensor, labels: torch.Tensor) -> None:
    in_file, in_memory = fit_temperatures(stored, labels), fit_temperatures(values, labels)
    torch.testing.assert_close(in_file.values, in_memory.values, rtol=1e-9, atol=0)
    assert in_file.doubts == in_memory.doubts


@torch.no_grad()
def test_what_is_known_of_exits(stored: LogitFile, values: torch.Tensor, labels: torch.Tensor) -> None:
    gate = UncertaintyGate(3)
    found = read_exits(stored, labels, gate)
    assert torch.equal(found.predictions, values.argmax(-1))
    torch.testing.assert_close(found.scores, gate(values[:, :-1]))
    true = values.softmax(-1)[torch.arange(103), :, labels]
    assert torch.equal(found.true_scores, 1 - true)


def whole_fit(values: torch.Tensor, labels: torch.Tensor, steps: int) -> SchedulerGate:
    """The gate's own forward pass and Adam, on everything at every step."""
    torch.manual_seed(0)
    gate = SchedulerGate(3, 7)
    optimizer = torch.optim.Adam(gate.parameters(), 0.01, weight_decay=1e-4)
    correct = (values[:, :-1].argmax(-1) == labels[:, None]).float()
    for _ in range(steps):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(gate(values[:, :-1]), correct).backward()
        optimizer.step()
    return gate


def test_the_scheduler_fitted_from_what_never_changes(
    stored: LogitFile, values: torch.Tensor, labels: torch.Tensor
) -> None:
    expected, found = whole_fit(values, labels, 60), fit_scheduler(stored, labels, steps=60)
    for own, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other.detach(), rtol=1e-3, atol=1e-4)


def test_the_scheduler_of_a_large_split_is_fitted_to_samples_spread_over_it(
    stored: LogitFile, values: torch.Tensor, labels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "FIT_BYTES", 4 * 3 * 10 * 35)
    rows = torch.linspace(0, 102, 35).round().long()
    found, expected = fit_scheduler(stored, labels, steps=20), whole_fit(values[rows], labels[rows], 20)
    for own, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other.detach(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_scheduler_fitted_to_parts_in_turn_is_as_good_as_one_fitted_to_all(
    stored: LogitFile, values: torch.Tensor, labels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.enable_grad():
        whole = whole_fit(values, labels, 60)
    monkeypatch.setattr(scheduler, "STEP_BYTES", 4 * 3 * 10 * 26)
    parts = fit_scheduler(stored, labels, steps=60)
    correct = (values[:, :-1].argmax(-1) == labels[:, None]).float()
    losses = [F.binary_cross_entropy_with_logits(gate(values[:, :-1]), correct) for gate in (whole, parts)]
    start = F.binary_cross_entropy_with_logits(torch.zeros_like(correct), correct)
    assert losses[0] < losses[1] < losses[0] + (start - losses[0]) / 4
