"""The results of a run on one split, as plain JSON values.

Fields of `results.json`: `schema`, `method`, `data`, `backbone`, `seed`, `split`, `operating_points`, `exits`,
`versions`. Every row of `operating_points` and `exits` has `name`, `accuracy`, `balanced_accuracy` (the mean over
classes with samples), `macro_f1` (over classes with samples or predictions), `nll` (nats), `ece` (15 equal-width bins),
`ece_mass` (15 bins of equal mass), `brier` (sum over classes), `aurc` (area under the risk-coverage curve), of early
exits `failure_auroc` (of minus the confidence as a sign that the last disagrees; `null` where none or all do), `macs`
(mean per sample), `macs_fraction` (of the plain backbone), the same of `bitops` where something is quantized,
`stages_mean`, `exit_fractions` and `bins` (the reliability diagram); `paths`, the share of the samples by path, where
they branch; `kept`, the numbers of the early exits that a point has, where it has not all. After `eenet calibrate` rows
also have `calibrated`, figures of the tempered probabilities (of exits with `temperature`, and a `doubt` where
validation samples do not determine it), and those of operating points `asked`, `got` on the validation split, and
`conformal` sets.

A row of `operating_points` also has `chosen`, and `chosen_on`: digest of the weights, fingerprint and size of the
validation split that chose it. One that is not chosen for the run's weights has `chosen: false`, `why`, its `name`, and
no figures. `part` says how much of the split was seen where that was not all of it, as under `limit_test_batches`;
`checkpoint_digest` is the SHA-256 of the checkpoint's file.
"""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.errors import UserError, said
from eenet.files import sha256, whole
from eenet.metrics import choice_shares, failure_auroc, summarise
from eenet.policies import Policy
from eenet.profile import Costs, TreeCosts, mean_cost
from eenet.reading import read_json
from eenet.tree import path_name

SCHEMA = 1

Results = dict[str, Any]
"""Plain JSON values with the fields above."""


def evaluate(
    statistics: Tensor, predictions: Tensor, scores: Tensor, policies: Mapping[str, Policy], costs: Costs
) -> Results:
    """Rows of all static exits and operating points, from all nodes' records of a data set.

    Args:
        statistics: Of every node, from `sample_statistics`, `(samples, nodes, 6)`.
        predictions: Predicted classes, `(samples, nodes)`.
        scores: Gate scores, `(samples, early nodes)`, or what else the gate gives.
        policies: Operating points by name.
        costs: Of the network's nodes.

    Returns:
        `exits` and `operating_points`.
    """
    points = []
    for name, policy in policies.items():
        nodes = policy.exits(predictions, scores)
        points.append(operating_point(name, gather_exits(statistics, nodes), nodes, costs))
    return {"operating_points": points, "exits": static_exits(statistics, costs)}


def static_exits(statistics: Tensor, costs: Costs, nodes: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """A row for each static exit: a network cut there, which runs no other head and no gate.

    Early ones say as `failure_auroc` how well their confidence tells where the last exit will disagree.

    Args:
        statistics: Of every node, `(samples, nodes, 6)`.
        costs: Of the network's nodes.
        nodes: One for each exit, where there are others; the widest by default.
    """
    nodes, shares = nodes or widest_nodes(costs), torch.eye(len(costs.node_exits))
    rows = [_row(f"exit {exit}", statistics[:, node], shares[node], costs, True) for exit, node in enumerate(nodes)]
    for row, node in zip(rows[:-1], nodes, strict=False):
        row["failure_auroc"] = failure_auroc(statistics[:, node], statistics[:, nodes[-1]])
    return rows


def widest_nodes(costs: Costs) -> list[int]:
    """Of the nodes of each exit the widest, which is the first; in a chain, the exits."""
    exits = list(costs.node_exits)
    return [exits.index(exit) for exit in range(costs.num_exits)]


def operating_point(name: str, statistics: Tensor, nodes: Tensor, costs: Costs) -> dict[str, Any]:
    """A row for the routed network.

    Args:
        name: Of the operating point.
        statistics: Of the predictions that samples left with, `(samples, 6)`.
        nodes: Where they left, `(samples,)`; in a chain, exits.
        costs: Of the network's nodes.
    """
    return _row(name, statistics, choice_shares(nodes.cpu(), len(costs.node_exits)), costs, False)


def gather_exits(values: Tensor, exits: Tensor) -> Tensor:
    """Each sample's row at its own exit: `(samples, exits, ...)` and `(samples,)` to `(samples, ...)`."""
    return values[torch.arange(len(exits), device=exits.device), exits]


def chosen_rows(results: Results) -> list[dict[str, Any]]:
    """The operating points that are chosen, which alone have figures."""
    return [row for row in results["operating_points"] if row.get("chosen", True)]


def _row(name: str, statistics: Tensor, shares: Tensor, costs: Costs, static: bool) -> dict[str, Any]:
    """A row by the shares of the samples that leave at each node."""
    found: dict[str, Any] = {"name": name, **summarise(statistics)}
    for unit, column in costs.columns.items():
        found[unit] = mean_cost(shares, column.static if static else column.routed)
        found[f"{unit}_fraction"] = found[unit] / column.full
    leaving = shares.new_zeros(costs.num_exits).index_add_(0, torch.tensor(list(costs.node_exits)), shares)
    found |= {"stages_mean": mean_cost(shares, costs.stages_run), "exit_fractions": leaving.tolist()}
    if isinstance(costs, TreeCosts):
        taken = shares.nonzero().squeeze(1).tolist()
        found["paths"] = {path_name(costs.tree.nodes[node]): shares[node].item() for node in taken}
    return found


def write_json(path: Path, values: Any) -> None:
    """Write JSON beside the path and rename it, so that the file is whole or not there.

    Raises:
        UserError: A value is not finite; JSON has no such number.
    """
    for name, value in numbers(values):
        if not math.isfinite(value):
            problem = "is no number, so that the file is not written; are the weights finite? lower the learning rate"
            raise UserError(f"{path}: {name}", value, problem)
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def numbers(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All floats in plain values, with where they stand.

    Example:
        >>> list(numbers({"exits": [{"nll": 0.5}]}))
        [('exits[0].nll', 0.5)]
    """
    if isinstance(values, dict):
        for key, value in values.items():
            yield from numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for place, value in enumerate(values):
            yield from numbers(value, f"{name}[{place}]")
    elif isinstance(values, float):
        yield name, values


def write_text(path: Path, text: str) -> None:
    """Write text beside the path and rename it, so that the file is whole or not there."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read a `results.json`.

    Raises:
        UserError: It is not there, not JSON, or of another schema.
    """
    try:
        results = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError("results", str(path), f"cannot be read ({said(error)}); `eenet test` writes it") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise UserError("results", str(path), f"is not of schema {SCHEMA}; write it again with `eenet test`")
    return results


def check_weights(run: str, results: Path, checkpoint: Path) -> None:
    """Raise a `UserError` for results of a checkpoint that a continued training has replaced; a run may have none."""
    found = read_results(results).get("checkpoint_digest")
    if found is not None and checkpoint.is_file() and found != sha256(checkpoint):
        again = shlex.join(["eenet", "test", "--config", str(results.parent / "config.yaml")])
        raise UserError("RUN", run, f"its results are of weights before the last training; write them anew: `{again}`")
