"""Work on a Ray cluster: tasks, and blocks by Ray Data, each of which arrives exactly once whatever its node does.

Ray begins a task whose node dies again on another. What a task returns goes back to the process that asked, which alone
writes, and says of which rows it is: `exactly_once` refuses a shard that is lost, doubled, foreign or of other rows.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import secrets
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from eenet import __version__
from eenet.errors import UserError, said, some
from eenet.files import PART, remove_left
from eenet.runs.trust import VARIABLE

R = TypeVar("R")

RETRIES = 10
"""Times that a task is begun again because its node or process died."""

SECONDS = 5
"""How long an address has to answer."""

AGAIN = "run the command again, which goes on with what is whole"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that runs, and what each task asks of it.

    Args:
        address: `HOST:PORT` of its head node; `auto` for the one of RAY_ADDRESS or of this machine.
        cpus: Cores of a task, which are its threads.
        gpus: GPUs of a task; a part of one lets tasks share it.

    Raises:
        UserError: Another address, or a task that asks for less than nothing.
    """

    address: str = "auto"
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.address != "auto" and host_and_port(self.address) is None:
            problem = "must be HOST:PORT of a cluster's head node, or auto, from a machine of the cluster"
            raise UserError("ray", self.address, problem)
        for field, value, fits in (("cpus", self.cpus, self.cpus > 0), ("gpus", self.gpus, self.gpus >= 0)):
            if not fits:
                raise UserError(field, value, "must be above 0" if field == "cpus" else "must be at least 0")

    @property
    def threads(self) -> int:
        """Threads of a task."""
        return max(1, int(self.cpus))

    @contextmanager
    def joined(self, folder: Path) -> Iterator[Joined]:
        """Join the cluster, and leave it in the end, which ends what still runs there.

        Args:
            folder: Where the results will be, which every node must see at the same path.

        Raises:
            UserError: Ray is not installed, nobody answers, or the versions differ.
        """
        ray = self._connect()
        try:
            self._say_waiting(ray)
            with _token(folder) as token:
                place = Place(os.getcwd(), str(token.absolute()), os.environ.get(VARIABLE, ""))
                yield Joined(self, ray, place)
        finally:
            ray.shutdown()

    def check(self) -> None:
        """See that Ray is installed and that somebody answers, before any work.

        Raises:
            UserError: It is not, or nobody does.
        """
        if find_spec("ray") is None:
            raise UserError("ray", self.address, 'needs Ray: pip install "eenet[ray]"')
        for address in known(self.address):
            try:
                socket.create_connection(host_and_port(address) or ("", 0), timeout=SECONDS).close()
            except OSError as error:
                problem = f"nobody answers at {address} ({error}); `ray start --head` starts a cluster and says where"
                raise UserError("ray", self.address, problem) from error

    def _connect(self) -> Any:
        self.check()
        import ray

        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            problem = f"cannot be joined ({said(error)}); `ray start --head` starts a cluster"
            raise UserError("ray", self.address, problem) from error
        return ray

    def _say_waiting(self, ray: Any) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes):
            asked = f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"
            print(f"eenet: no node of the cluster has {asked}; tasks wait for one", file=sys.stderr)


@dataclass(frozen=True)
class Place:
    """Where a task works, which is where the command was given.

    Attributes:
        folder: The working folder.
        token: A file that nodes see which share the command's file system.
        trusted: Packages whose classes may be named.
        version: Of eenet.
    """

    folder: str
    token: str
    trusted: str
    version: str = __version__

    def enter(self) -> None:
        """Go there.

        Raises:
            UserError: This node does not share the file system, or has another eenet.
        """
        node = socket.gethostname()
        if self.version != __version__:
            raise UserError("ray", node, f"has eenet {__version__} and not {self.version}, as where the command runs")
        for path in (self.folder, self.token):
            if not os.path.exists(path):
                seen = os.path.dirname(path) if path == self.token else path
                problem = f"does not see {seen} of the command; all nodes need one file system, at the same paths"
                raise UserError("ray", node, problem)
        os.chdir(self.folder)
        if self.folder not in sys.path:
            sys.path.append(self.folder)
        os.environ[VARIABLE] = self.trusted


@dataclass(frozen=True)
class Joined:
    """A cluster that was joined.

    Work is a function of what all tasks share and of one task, which every node can import. It returns the ids of the
    rows that it worked on, and a result.

    Attributes:
        cluster: The cluster.
        ray: The library.
        place: Where tasks work.
    """

    cluster: Cluster
    ray: Any
    place: Place

    def tasks(
        self, work: Callable[[Any, Any], tuple[Sequence, R]], shared: Any, tasks: Mapping[int, Any]
    ) -> Iterator[tuple[int, Sequence, R]]:
        """Work as Ray tasks: number, ids and result of each as it ends.

        Raises:
            UserError: What work raised, or a task whose node died too often.
        """
        cluster = self.cluster
        remote = self.ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=RETRIES)(perform)
        kept = self.ray.put(shared)
        waiting = {remote.remote(self.place, work, kept, task): number for number, task in tasks.items()}
        while waiting:
            (ended,), _ = self.ray.wait(list(waiting), num_returns=1)
            with self._translated():
                found = self.ray.get(ended)
            yield waiting.pop(ended), *result(*found)

    def blocks(
        self, work: Callable[[Any, Any], tuple[Sequence, R]], shared: Any, tasks: Mapping[int, Any]
    ) -> Iterator[tuple[int, Sequence, R]]:
        """Work as blocks of a data set of Ray Data, for many tasks: number, ids and result of each as it ends.

        Tasks and results are bytes there, in whose columns no type is changed.

        Raises:
            UserError: As `tasks`.
        """
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"number": number, "task": pickle.dumps(task)} for number, task in tasks.items()]
        with warnings.catch_warnings():  # until Ray 2.64 retries are limited so, and by nothing else
            warnings.filterwarnings("ignore", ".*ray_remote_args")
            found = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                perform_row,
                fn_kwargs={"place": self.place, "work": work, "shared": shared},
                num_cpus=self.cluster.cpus,
                num_gpus=self.cluster.gpus,
                max_retries=RETRIES,
            )
        with self._translated():
            for row in found.iter_rows():
                yield row["number"], *result(*pickle.loads(row["result"]))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self.ray.exceptions.RayError as error:
            if "No module named 'eenet" in str(error):
                problem = 'a node has no eenet; pip install "eenet[ray]" there'
            elif isinstance(error, self.ray.exceptions.RayTaskError):
                raise  # a fault, whose traceback says where
            else:
                problem = f"a task was begun {RETRIES + 1} times and never ended ({said(error)}); {AGAIN}"
            raise UserError("ray", self.cluster.address, problem) from error


def exactly_once(found: Iterable[tuple[int, Sequence, R]], asked: Mapping[int, Sequence]) -> Iterator[tuple[int, R]]:
    """Results of shards as they come, each of the rows that it was asked for, and all of them once.

    Args:
        found: Number, ids and result of each.
        asked: Ids by number.

    Raises:
        UserError: A shard is lost, doubled, foreign or of other rows.

    Example:
        >>> list(exactly_once([(1, ["c"], "C"), (0, ["a", "b"], "AB")], {0: ["a", "b"], 1: ["c"]}))
        [(1, 'C'), (0, 'AB')]
        >>> list(exactly_once([(1, ["c"], "C")], {0: ["a", "b"], 1: ["c"]}))
        Traceback (most recent call last):
        eenet.errors.UserError: shard = '0': was lost; run the command again, which goes on with what is whole
    """
    left = dict(asked)
    for number, ids, value in found:
        if number not in left:
            raise UserError("shard", number, f"came {'twice' if number in asked else 'unasked'}; {AGAIN}")
        if list(ids) != list(left.pop(number)):
            raise UserError("shard", number, f"is of other rows than it was asked for; {AGAIN}")
        yield number, value
    if left:
        raise UserError("shard", some(left), f"was lost; {AGAIN}")


def perform(place: Place, work: Callable, shared: Any, task: Any) -> tuple[Any, UserError | None]:
    """What work returns, or the mistake that it raises, which Ray would wrap."""
    try:
        place.enter()
        return work(shared, task), None
    except UserError as error:
        return None, error


def perform_row(row: dict[str, Any], place: Place, work: Callable, shared: Any) -> dict[str, Any]:
    """As `perform`, of a row of a data set."""
    found = perform(place, work, shared, pickle.loads(row["task"]))
    return {"number": row["number"], "result": pickle.dumps(found)}


def result(found: Any, mistake: UserError | None) -> Any:
    """What `perform` returned.

    Raises:
        UserError: What it caught.
    """
    if mistake is not None:
        raise mistake
    return found


def host_and_port(address: str) -> tuple[str, int] | None:
    """The two parts of an address, `None` where it has others.

    Example:
        >>> host_and_port("head:6379"), host_and_port("ray://head:10001"), host_and_port("head")
        (('head', 6379), None, None)
    """
    host, _, port = address.rpartition(":")
    return (host, int(port)) if host and "/" not in host and port.isdigit() and int(port) < 2**16 else None


def known(address: str) -> Iterator[str]:
    """The address that an address means, as far as it is written down: Ray waits for minutes where nobody answers."""
    started = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")  # by `ray start` on this machine
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or (started.read_text(encoding="utf-8") if started.is_file() else "")
    if host_and_port(address.strip()) is not None:
        yield address.strip()


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    remove_left(folder, "ray")
    token = folder / f".ray.{secrets.token_hex(4)}{PART}"
    with token.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield token
        finally:
            token.unlink(missing_ok=True)
