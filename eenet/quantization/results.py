"""Rows of `results.json` that QuEE adds: the same fields as any row, and BitOPs and paths beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eenet.costs import mean_cost
from eenet.errors import UserError
from eenet.metrics import choice_shares
from eenet.network import EarlyExitNetwork
from eenet.quantization.backbone import QuantizedBackbone, bitops_profile
from eenet.quantization.bitops import bitops
from eenet.quantization.curves import Point, point_for_budget, uniform_nodes
from eenet.quantization.network import QuantizedNetwork
from eenet.quantization.paths import path_name
from eenet.quantization.policy import PathPolicy
from eenet.reporting import operating_point


def path_row(
    network: QuantizedNetwork, name: str, statistics: Tensor, nodes: Tensor, policy: PathPolicy
) -> dict[str, Any]:
    """A row for the routed network.

    Args:
        network: The network.
        name: Of the operating point.
        statistics: Of the predictions that samples left with, `(samples, 6)`, see `eenet.metrics.sample_statistics`.
        nodes: Where they left, `(samples,)`.
        policy: The operating point.

    Returns:
        The fields of `eenet.reporting.operating_point`, whose MACs include the predictors; `bitops` (mean per sample),
        `bitops_fraction` (of the plain backbone in floating point), `paths` (share of the samples by path),
        `first_width` and `tradeoff`.
    """
    nodes = nodes.cpu()
    exits = torch.tensor([network.tree.exit(node) for node in range(len(network.tree.nodes))])[nodes]
    shares = choice_shares(nodes, len(network.tree.nodes))
    macs = (shares @ torch.tensor(network.node_macs, dtype=torch.float64)).item()
    cost = (shares @ torch.tensor(network.node_bitops, dtype=torch.float64)).item()
    return {
        **operating_point(name, statistics, exits, network.costs),
        "macs": macs,
        "macs_fraction": macs / network.costs.full,
        "bitops": cost,
        "bitops_fraction": cost / network.path_costs.full,
        "paths": {
            path_name(network.tree.nodes[node]): shares[node].item() for node in shares.nonzero().squeeze(1).tolist()
        },
        "first_width": policy.first_width,
        "tradeoff": policy.tradeoff,
    }


def bitops_fields(network: EarlyExitNetwork, row: Mapping[str, Any], static: bool = False) -> dict[str, float]:
    """What a row of a network over a `QuantizedBackbone` has besides; nothing over a float one.

    Args:
        network: The network.
        row: From `eenet.reporting.operating_point` or `static_exits`.
        static: Whether it is of a network cut at an exit, which runs no other head and no gate.

    Returns:
        `bitops` (mean per sample) and `bitops_fraction` (of the plain backbone in floating point).
    """
    if not isinstance(network.backbone, QuantizedBackbone):
        return {}
    profile = bitops_profile(network)
    cost = mean_cost(row["exit_fractions"], profile.static if static else profile.cumulative)
    return {"bitops": cost, "bitops_fraction": cost / bitops(network.costs.full)}


def uniform_rows(network: QuantizedNetwork, statistics: Tensor, width: int) -> list[dict[str, Any]]:
    """A row for each static network of one width, cut at each exit.

    Args:
        network: The network.
        statistics: Of every node, `(samples, nodes, 6)`.
        width: Throughout.
    """
    rows = []
    for exit, node in enumerate(uniform_nodes(network, width)):
        path, macs = network.tree.nodes[node], network.costs.static[exit]
        cost = network.path_costs.static(path)
        row = operating_point(f"exit {exit}", statistics[:, node], torch.full((len(statistics),), exit), network.costs)
        row |= {"macs": macs, "macs_fraction": macs / network.costs.full, "paths": {path_name(path): 1.0}}
        rows.append({**row, "bitops": cost, "bitops_fraction": cost / network.path_costs.full, "width": width})
    return rows


def curve_rows(points: Sequence[Point]) -> list[dict[str, float | None]]:
    """Points of a curve as plain values; a knob that is not finite becomes `None`."""
    return [{**point._asdict(), "knob": point.knob if abs(point.knob) < float("inf") else None} for point in points]


def halves_at_budget(
    budget: float, chosen_on: Mapping[str, Sequence[Point]], judged_on: Mapping[str, Sequence[Point]]
) -> dict[str, Any]:
    """What other ways of spending a budget reach, each at the point that is best on validation samples.

    Args:
        budget: As a fraction of the float network's BitOPs.
        chosen_on: Curves by name, on validation samples.
        judged_on: The same points on other samples.

    Returns:
        `budget`, and by name the judged point as plain values; `None` where no point keeps the budget.
    """
    found: dict[str, Any] = {"budget": budget}
    for name, points in chosen_on.items():
        try:
            number = list(points).index(point_for_budget(points, budget))
            found[name] = curve_rows([judged_on[name][number]])[0]
        except UserError:
            found[name] = None
    return found
