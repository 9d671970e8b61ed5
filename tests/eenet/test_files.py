"""Files are whole or not there, whatever ends their writer."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from eenet.files import PART, check_writable, whole
from eenet.runs import RunFolder


def killed_while_writing(path: Path, folder: bool) -> None:
    """Let a fork kill itself half-way."""
    child = os.fork()
    if child == 0:
        with whole(path, folder) as beside:
            (beside / "a.bin" if folder else beside).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("folder", [False, True])
def test_a_kill_leaves_nothing_at_the_path_and_the_next_writer_clears_up(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "out"
    killed_while_writing(path, folder)
    assert not path.exists()
    assert [left.suffix for left in tmp_path.iterdir()] == [PART]
    with whole(path, folder) as beside:
        (beside / "a.bin" if folder else beside).write_bytes(b"all of it")
    assert [left.name for left in tmp_path.iterdir()] == ["out"]
    assert (path / "a.bin" if folder else path).read_bytes() == b"all of it"


def test_a_training_that_goes_on_clears_up_after_the_one_that_was_killed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for path in (run.config, run.last):
        killed_while_writing(path, False)
    with run.training() as training:
        training.begin()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_kill_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    killed_while_writing(path, False)
    assert path.read_text() == "before"


def test_what_another_writes_is_not_cleared_up(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with whole(path) as first:
        first.write_text("first")
        with whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole(tmp_path / "file"):
            pass
        with whole(tmp_path / "folder", folder=True) as beside:
            os.close(os.open(beside / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    rights = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert rights == {"file": 0o640, "folder": 0o750, "private": 0o640}


def fill_a_disk(path: Path) -> None:
    with whole(path), open("/dev/full", "w") as full:
        full.write("more than there is room for")


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as refused:
        fill_a_disk(tmp_path / "note.txt")
    assert refused.value.filename == str(tmp_path / "note.txt")


@pytest.mark.parametrize("named", ["new/run", "a.txt"])
def test_a_folder_without_rights_is_told_by_its_name(named: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # whose parents another user may read
        os.chmod(folder, 0o555)
        path, child = Path(folder, named), os.fork()
        if child == 0:
            os.geteuid() or os.setuid(65534)
            try:
                check_writable(path) if named == "new/run" else whole(path).__enter__()
            except PermissionError as error:
                os._exit(error.filename != str(path))
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "file"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())
