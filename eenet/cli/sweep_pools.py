"""`eenet sweep`: where runs are executed, a pool of this machine or a Ray cluster whose nodes share the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from eenet.cluster import Cluster


class Asked(NamedTuple):
    """What becomes of every run: its threads, the arguments of its calibrations, and whether it is tested."""

    threads: int
    calibrate: list[str]
    tested: bool


class Ended(NamedTuple):
    """Whether a run has what was asked for, and what is to be said of it."""

    done: bool
    line: str


Execute = Callable[[Asked, Any], Ended]
ExecuteAll = Callable[[list[Any], Asked], Iterator[tuple[int, Ended]]]
"""Numbers of runs, and how they ended, as they do."""


@contextmanager
def pool(execute: Execute, processes: int) -> Iterator[ExecuteAll]:
    """Execute runs on this machine, so many at a time."""
    with ThreadPoolExecutor(processes) as threads:

        def execute_all(runs: list[Any], asked: Asked) -> Iterator[tuple[int, Ended]]:
            waiting = {threads.submit(execute, asked, run): number for number, run in enumerate(runs)}
            try:
                yield from ((waiting[ended], ended.result()) for ended in as_completed(waiting))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)  # those that run have got the signal too
                raise

        yield execute_all


@contextmanager
def tasks(execute: Execute, cluster: Cluster, folder: Path) -> Iterator[ExecuteAll]:
    """Execute runs as tasks of a cluster; one whose node dies goes on after its last epoch on another."""
    from eenet.cluster import exactly_once

    with cluster.joined(folder) as nodes:

        def execute_all(runs: list[Any], asked: Asked) -> Iterator[tuple[int, Ended]]:
            numbered = dict(enumerate(runs))
            names = {number: [run.folder.name] for number, run in numbered.items()}
            yield from exactly_once(nodes.tasks(partial(_named, execute), asked, numbered), names)

        yield execute_all


def _named(execute: Execute, asked: Asked, run: Any) -> tuple[list[str], Ended]:
    return [run.folder.name], execute(asked, run)
