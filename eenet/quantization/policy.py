"""Where a sample goes next: the option with the least predicted error plus priced cost (QuEE, arXiv 2406.14404)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.quantization.network import QuantizedNetwork
from eenet.quantization.paths import PathTree
from eenet.quantization.predictors import Known


class PathPolicy(NamedTuple):
    """An operating point of a trained network.

    Attributes:
        first_width: Of the first segment, before which nothing is known of a sample. [inferred]
        tradeoff: lambda, the price of the full network's BitOPs in units of the error probability.
    """

    first_width: int
    tradeoff: float

    def arguments(self) -> dict[str, Any]:
        """First width and lambda."""
        return self._asdict()


def cheapest_options(errors: Tensor, costs: Tensor, tradeoff: float) -> Tensor:
    """The option with the least `error + lambda * cost`; the first of equals.

    Args:
        errors: Predicted, `(samples, options)`.
        costs: Of leaving at the end of each option, `(options,)`, as fractions of the full network's BitOPs.
        tradeoff: lambda.

    Returns:
        `(samples,)`.

    Example:
        >>> errors, costs = torch.tensor([[0.5, 0.1], [0.2, 0.1]]), torch.tensor([0.1, 0.4])
        >>> cheapest_options(errors, costs, 1.0).tolist()
        [1, 0]
    """
    return (errors.double() + tradeoff * costs.double().to(errors.device)).argmin(1)


def next_nodes(network: QuantizedNetwork, node: int, errors: Tensor, tradeoff: float) -> Tensor:
    """Where samples at an early node go: a child, or the node itself for those that leave.

    Args:
        network: The network.
        node: Where they are.
        errors: Predicted for `network.tree.reachable(node)`, `(samples, options)`.
        tradeoff: lambda.

    Returns:
        Nodes, `(samples,)`.
    """
    tree = network.tree
    options = cheapest_options(errors, network.node_costs[tree.reachable(node)], tradeoff)
    return torch.tensor(tree.steps(node), device=errors.device)[options]


@torch.no_grad()
def predicted_errors(network: QuantizedNetwork, known: Sequence[Known]) -> list[Tensor]:
    """What every early node predicts for its reachable nodes, `(samples, options)` each."""
    return [predictor(rows).sigmoid() for predictor, rows in zip(network.predictors, known, strict=True)]


def final_nodes(network: QuantizedNetwork, errors: Sequence[Tensor], policy: PathPolicy) -> Tensor:
    """Where every sample leaves when all nodes have been computed: the reference of `route_paths`.

    Args:
        network: The network.
        errors: From `predicted_errors`.
        policy: The operating point.

    Returns:
        Nodes, `(samples,)`.
    """
    return follow(network.tree, next_moves(network, errors, policy.tradeoff), first_node(network, policy))


def next_moves(network: QuantizedNetwork, errors: Sequence[Tensor], tradeoff: float) -> Tensor:
    """Where samples would go from every early node, `(samples, early nodes)`, as in `next_nodes`."""
    return torch.stack([next_nodes(network, node, rows, tradeoff) for node, rows in enumerate(errors)], dim=1)


def follow(tree: PathTree, moves: Tensor, start: int) -> Tensor:
    """Walk from the same node until every sample stays.

    Args:
        tree: The paths.
        moves: Next node at each early node, `(samples, early nodes)`.
        start: First node.

    Returns:
        Nodes, `(samples,)`.

    Example:
        >>> follow(PathTree.of([(8, 8), (8, 4)]), torch.tensor([[0], [2]]), 0).tolist()
        [0, 2]
    """
    nodes = torch.full((len(moves),), start, device=moves.device)
    for _ in range(tree.segments - 1):
        early = nodes < tree.num_early
        moved = moves.gather(1, torch.where(early, nodes, 0).unsqueeze(1)).squeeze(1)
        nodes = torch.where(early, moved, nodes)
    return nodes


def first_node(network: QuantizedNetwork, policy: PathPolicy) -> int:
    """The node after the first segment.

    Raises:
        UserError: The network does not run at the policy's first width.
    """
    if policy.first_width not in network.widths:
        raise UserError("policy.first_width", policy.first_width, f"must be one of {list(network.widths)}")
    return network.tree.index[(policy.first_width,)]
