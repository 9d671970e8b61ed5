"""Options that several commands take, and lists in one text."""

from typing import TYPE_CHECKING, Any

from eenet.errors import UserError
from eenet.parsing.refusals import Parser

if TYPE_CHECKING:
    from eenet.cluster import Cluster


def add_run(parser: Parser) -> None:
    """Let a command be told which run, and which checkpoint of it."""
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--ckpt_path", type=str, default="last", help="last, best (of the run's monitor) or a file")


def numbers(field: str, text: str) -> list[float]:
    """Numbers between commas; a `UserError` where something else is there."""
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(field, text, "must be numbers between commas, as 0.3,0.5") from error


def names(text: str) -> tuple[Any, ...]:
    """Names between commas, each once.

    Example:
        >>> names("common, per_exit,common")
        ('common', 'per_exit')
    """
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def add_ray(parser: Parser) -> None:
    """Let a command run on a Ray cluster, and say what each of its tasks needs there."""
    parser.add_argument(
        "--ray", nargs="?", const="auto", type=str | None, default=None, metavar="ADDRESS",
        help="work on the Ray cluster at HOST:PORT; without an address on the one that runs here",
    )  # fmt: skip
    parser.add_argument("--cpus", type=float, default=1.0, help="cores of each task on the cluster")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each task on the cluster")


def cluster_of(options: dict[str, Any]) -> "Cluster | None":
    """The cluster that is asked for, `None` for this machine, its options taken away; a `UserError` if none answers."""
    from eenet.cluster import Cluster

    address, cpus, gpus = options.pop("ray"), options.pop("cpus"), options.pop("gpus")
    if address is None:
        return None
    cluster = Cluster(address, cpus, gpus)
    cluster.check()
    return cluster
