"""Commands that are killed end as if they were not; wrong and strange files are refused in one line, and nothing runs.

By default each command is run on what kills at two moments leave; the slow suite kills each at 25 moments, or all
where there are fewer, and tries all kinds.
`python -m tests.survive.score` prints a score.
"""

import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from eenet.runs import RunFolder
from tests.survive.exports import damaged_exports
from tests.survive.harness import COMMANDS, KILLS, QUIET, Base, kill, killed, left_by_kills, reference, run, workplace
from tests.survive.wrong import strange_configurations, wrong_backbones, wrong_checkpoints


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.make(tmp_path_factory.mktemp("survive") / "base")


def files_below(folder: Path) -> list[tuple[str, bytes]]:
    """Paths, but for the random part of names, and bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted((re.sub(r"\.\w{8}\.part", "", str(path.relative_to(folder))), path.read_bytes()) for path in files)


ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
pytestmark = pytest.mark.forks


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_ends_like_one_that_was_not(base: Base, name: str) -> None:
    ends = list(left_by_kills(base, name))
    assert [found for found in ends if found] == []
    assert len(ends) == KILLS


def test_a_kill_leaves_what_lay_there(base: Base) -> None:
    for at, found in reference(base, "infer").kills.items():
        with workplace(base, "infer", reference(base, "infer").before):
            args, changed = COMMANDS["infer"]
            ended = run(args, base.work / changed, lambda number, at=at: kill(number) if number == at else None)
            assert ended.code == -signal.SIGKILL
            assert files_below(base.work / changed) == files_below(found)


@SLOW
@pytest.mark.parametrize("name", COMMANDS)
def test_whenever_it_is_killed(base: Base, name: str) -> None:
    assert [found for found in killed(base, name, 25, seed=1) if found] == []


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


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=SLOW)])
def test_wrong_backbones_are_refused_in_one_line(base: Base, every: int, tmp_path: Path) -> None:
    ends = list(wrong_backbones(base, tmp_path, every))
    right = 2 if every == 1 else 0
    assert [(name, ended) for name, ended in ends[:right] if ended.code] == []
    assert [(name, ended) for name, ended in ends[right:] if not ended.clear] == []
    assert len(ends) > right + 1


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=SLOW)])
def test_nothing_of_a_stranger_runs(base: Base, every: int, tmp_path: Path) -> None:
    ends = list(strange_configurations(base, tmp_path / "run", every))
    assert [name for name, _, ran in ends if ran] == []
    assert len(ends) > 1


@pytest.mark.parametrize(
    ("count", "formats"), [(40, ["torch"]), pytest.param(600, ["torch", "torch", "onnx"], marks=SLOW)]
)
def test_damaged_exports_do_nothing_and_are_refused_in_one_line(
    base: Base, tmp_path: Path, count: int, formats: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    tried = damaged_exports(base, tmp_path, count, 0, formats)
    assert [one for one in tried if one.acted or one.unclear] == []
    assert len(tried) == count
    assert capfd.readouterr().out == ""


@SLOW
@pytest.mark.parametrize("victim", [0, 1])
def test_the_command_ends_soon_after_one_of_its_processes(base: Base, tmp_path: Path, victim: int) -> None:
    """As Lightning starts them: the command is the first, and a second one is its child."""
    folder = RunFolder(tmp_path / "run")
    args = ["fit", "--config", str(base.folder / "config.yaml"), f"--trainer.default_root_dir={folder.path}", *QUIET]
    command = [sys.executable, "-m", "eenet", *args, "--trainer.devices=2", "--trainer.max_epochs=5000"]
    with (tmp_path / "said").open("w") as said:
        first = psutil.Popen(command, stdout=said, stderr=said, cwd=ROOT)
    while not folder.last.is_file():
        assert first.poll() is None
        time.sleep(0.1)
    (second,) = first.children()
    (first if victim == 0 else second).kill()
    start = time.monotonic()
    if victim:
        assert first.wait(30) == 2
        assert "trainer.devices = " in (tmp_path / "said").read_text()
    else:
        second.wait(30)
    assert time.monotonic() - start < 30
