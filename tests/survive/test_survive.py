"""Commands that are killed end as if they were not; wrong and strange files are refused in one line, and nothing runs.

By default two moments of a training are tried; the slow suite tries all commands, 25 moments of each, and all kinds.
`python -m tests.survive.score` prints a score.
"""

import signal
from pathlib import Path

import pytest
import torch

from eenet.runs import RunFolder
from tests.survive.harness import COMMANDS, QUIET, Base, killed, run
from tests.survive.wrong import strange_configurations, wrong_checkpoints


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.make(tmp_path_factory.mktemp("survive") / "base")


SLOW = pytest.mark.slow
QUICK = ("fit",)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in COMMANDS])
def test_a_killed_command_ends_like_one_that_was_not(base: Base, name: str, tmp_path: Path) -> None:
    assert [found for found in killed(base, name, 2, tmp_path / "work") if found] == []


@SLOW
@pytest.mark.parametrize("name", COMMANDS)
def test_whenever_it_is_killed(base: Base, name: str, tmp_path: Path) -> None:
    assert [found for found in killed(base, name, 25, tmp_path / "work", seed=1) if found] == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=SLOW)])
def test_a_training_that_a_signal_ends_is_not_finished(
    base: Base, sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    args = ["fit", "--config", str(base.folder / "config.yaml"), f"--trainer.default_root_dir={folder.path}", *QUIET]
    ended = run([*args, "--trainer.max_epochs=500"], sent=sent, once=folder.last)
    assert ended.code == code, ended.text
    assert "Traceback" not in ended.text
    assert not folder.finished
    done = torch.load(folder.last, weights_only=True)["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    ended = run([*args, "--ckpt_path=auto", f"--trainer.max_epochs={done + 2}"])
    assert ended.code == 0, ended.text
    assert folder.finished
    assert RunFolder(base.folder / "runs/exits").finished


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=SLOW)])
def test_wrong_checkpoints_are_refused_in_one_line(base: Base, every: int, tmp_path: Path) -> None:
    ends = list(wrong_checkpoints(base, tmp_path / "run", every))
    assert [(name, ended) for name, ended in ends if not ended.clear] == []
    assert len(ends) > 1


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=SLOW)])
def test_nothing_of_a_stranger_runs(base: Base, every: int, tmp_path: Path) -> None:
    ends = list(strange_configurations(base, tmp_path / "run", every))
    assert [name for name, _, ran in ends if ran] == []
    assert len(ends) > 1
