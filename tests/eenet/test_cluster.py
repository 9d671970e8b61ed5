"""What a cluster returns is taken whole or refused; that needs no Ray."""

import os
import pickle
import socket
import sys
import time
from pathlib import Path

import pytest

from eenet import cluster as room
from eenet.cluster import Cluster, Place, exactly_once, known, perform, perform_row, result
from eenet.errors import UserError

ASKED = {0: ["a", "b"], 1: ["c"], 2: ["d"]}
WHOLE = [(2, ["d"], "D"), (0, ["a", "b"], "AB"), (1, ["c"], "C")]


def test_shards_are_taken_in_any_order() -> None:
    assert dict(exactly_once(WHOLE, ASKED)) == {0: "AB", 1: "C", 2: "D"}
    assert list(exactly_once([], {})) == []


@pytest.mark.parametrize(
    ("found", "number", "problem"),
    [
        (WHOLE[1:], "2", "was lost"),
        ([], "0, 1, 2", "was lost"),
        ([*WHOLE, WHOLE[0]], 2, "came twice"),
        ([*WHOLE, (3, ["e"], "E")], 3, "came unasked"),
        ([(2, ["e"], "E"), *WHOLE[1:]], 2, "other rows"),
        ([(2, [], ""), *WHOLE[1:]], 2, "other rows"),
        ([(2, ["d", "d"], "DD"), *WHOLE[1:]], 2, "other rows"),
        ([*WHOLE[:1], (0, ["b", "a"], "BA"), *WHOLE[2:]], 0, "other rows"),
        ([*WHOLE[:1], (0, ["a"], "A"), *WHOLE[2:]], 0, "other rows"),
    ],
)
def test_lost_doubled_and_foreign_shards_are_refused(found: list, number: object, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as error:
        list(exactly_once(found, ASKED))
    assert (error.value.field, error.value.value) == ("shard", number)


def test_a_task_works_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("EENET_TRUST", "before")
    (tmp_path / "work").mkdir()
    with room._token(tmp_path / "out") as token:
        place = Place(str(tmp_path / "work"), str(token), "mine,yours")
        row = perform_row(
            {"number": 7, "task": pickle.dumps("task")},
            place,
            lambda *given: (list(given), os.getcwd()),
            "shared",
        )
        assert row["number"] == 7
        assert result(*pickle.loads(row["result"])) == (["shared", "task"], str(tmp_path / "work"))
        assert os.environ["EENET_TRUST"] == "mine,yours"
        for other, problem in (
            (Place(str(tmp_path / "nowhere"), str(token), ""), f"does not see {tmp_path}/nowhere"),
            (Place(str(tmp_path), f"{token}.other", ""), f"does not see {tmp_path}/out of the command"),
            (Place(str(tmp_path), str(token), "", version="0"), "has eenet"),
        ):
            found, mistake = perform(other, lambda *_: pytest.fail("worked"), None, None)
            assert found is None
            assert problem in str(mistake)
            with pytest.raises(UserError, match="ray = "):
                result(found, mistake)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mistake_of_the_work_arrives_as_it_was_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "enter", lambda place: None)

    def work(*_: object) -> tuple:
        raise UserError("input", "x.png", "is gone")

    row = perform_row({"number": 0, "task": pickle.dumps(1)}, Place("", "", ""), work, None)
    with pytest.raises(UserError, match=r"input = 'x.png': is gone"):
        result(*pickle.loads(row["result"]))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"address": "ray://head:10001"}, "ray"),
        ({"address": "head"}, "ray"),
        ({"address": "head:99999"}, "ray"),
        ({"cpus": 0}, "cpus"),
        ({"gpus": -1}, "gpus"),
    ],
)
def test_wrong_clusters_are_refused(arguments: dict, field: str) -> None:
    with pytest.raises(UserError) as error:
        Cluster(**arguments)
    assert error.value.field == field


def test_what_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs Ray: pip install \"eenet\[ray\]\""):
        Cluster().check()
    monkeypatch.setattr(room, "find_spec", lambda _: object())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(UserError, match=f"nobody answers at {address}"), Cluster(address).joined(tmp_path / "out"):
        pytest.fail("joined")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"ray = 'auto': nobody answers at {address}"):
        Cluster().check()
    assert time.monotonic() - began < 2 * room.SECONDS
    assert not (tmp_path / "out").exists()


def test_an_address_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda _: object())
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert list(known(address)) == [address]
        Cluster(address).check()


def test_the_cluster_of_this_machine_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(room.tempfile, "gettempdir", lambda: str(tmp_path))
    assert list(known("auto")) == []
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert list(known("auto")) == ["10.0.0.1:6379"]


def test_threads_are_the_cores_of_a_task() -> None:
    assert [Cluster(cpus=cpus).threads for cpus in (0.5, 1, 4)] == [1, 1, 4]
