"""Requests that share batches: their rows meet by operating point and shape, and each request gets its own answer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eenet.errors import said
from eenet.serving.bodies import Refused, Row

Route = Callable[[str, Any], list[dict[str, Any]]]
"""Routes a batch at an operating point: an answer for each row, with its `probability` and plain JSON values."""


class Asked(NamedTuple):
    """A request.

    Attributes:
        point: Its operating point.
        rows: Its rows, at least one.
    """

    point: str
    rows: list[Row]


Place = tuple[int, int]
"""Number of a request, and of a row in it."""


def answers(requests: Sequence[Asked], route: Route, most: int) -> list[dict[str, Any] | Refused]:
    """Answer some requests at once.

    Rows of one operating point and shape are routed together, so none is padded. Where a batch fails, the rows of each
    request are tried alone, so that nobody fails for another.

    Args:
        requests: Requests whose rows were checked.
        route: The network.
        most: Rows of a batch.

    Returns:
        For each request `point` and `rows`, an answer for each of its rows in their order; or why there is none.
    """
    groups: dict[Hashable, list[Place]] = defaultdict(list)
    for number, asked in enumerate(requests):
        for place, row in enumerate(asked.rows):
            groups[asked.point, _shape(row)].append((number, place))
    found: dict[Place, dict[str, Any]] = {}
    refused: dict[int, Refused] = {}
    for members in groups.values():
        for start in range(0, len(members), most):
            _route(requests, members[start : start + most], route, found, refused)
    return [
        refused.get(number) or _answer(asked, [found[number, place] for place in range(len(asked.rows))])
        for number, asked in enumerate(requests)
    ]


def _route(
    requests: Sequence[Asked],
    members: list[Place],
    route: Route,
    found: dict[Place, dict[str, Any]],
    refused: dict[int, Refused],
) -> None:
    try:
        batch = stack([requests[number].rows[place] for number, place in members])
        found.update(zip(members, route(requests[members[0][0]].point, batch), strict=True))
    except Exception as error:  # whatever a model or its runtime raises on values
        owners = sorted({number for number, _ in members})
        if len(owners) == 1:
            refused[owners[0]] = Refused(422, f"the network cannot run on these rows ({said(error, 200)})")
            return
        for owner in owners:
            _route(requests, [member for member in members if member[0] == owner], route, found, refused)


def _answer(asked: Asked, rows: list[dict[str, Any]]) -> dict[str, Any] | Refused:
    bad = next((place for place, row in enumerate(rows) if not math.isfinite(row["probability"])), None)
    if bad is not None:
        return Refused(422, f"row {bad}: what the network makes of it is not a number")
    return {"point": asked.point, "rows": rows}


def stack(rows: Sequence[Row]) -> Tensor | dict[str, Tensor]:
    """A batch of rows of one shape."""
    first = rows[0]
    if isinstance(first, dict):
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in first}
    return torch.from_numpy(np.stack(rows))  # type: ignore[arg-type]


def _shape(row: Row) -> Hashable:
    return tuple(_shapes(row))


def _shapes(row: Row) -> Iterator[Hashable]:
    for name, array in row.items() if isinstance(row, dict) else [(None, row)]:
        yield name, array.shape, array.dtype.str
