"""Routed inference over exits and bit-widths: samples are regrouped at every exit by the width they go on with."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from eenet.backbones.base import State, select
from eenet.gates import uncertainty_statistics
from eenet.quantization.network import QuantizedNetwork, pooled
from eenet.quantization.policy import PathPolicy, first_node, next_nodes
from eenet.quantization.predictors import Known


class RoutedPaths(NamedTuple):
    """What routed inference over paths returns, in the order of the inputs.

    Attributes:
        logits: Of the exit at which each sample left, `(batch, classes)`.
        nodes: Node of the path tree at which each sample left, `(batch,)`.
        exits: Number of that exit, `(batch,)`.
        macs: What each sample cost in MACs, int64 `(batch,)`.
        bitops: What each sample cost in BitOPs, int64 `(batch,)`.
    """

    logits: Tensor
    nodes: Tensor
    exits: Tensor
    macs: Tensor
    bitops: Tensor


Group = tuple[Tensor, Tensor, State]
"""Samples that go through the next segment together: their rows in the batch, their nodes behind it, their state."""


@torch.no_grad()
def route_paths(network: QuantizedNetwork, inputs: Any, policy: PathPolicy) -> RoutedPaths:
    """Run only the segments that each sample chooses, at the width it chooses.

    At an exit all samples that go on at one width run together, whatever path they came by. The result equals
    gathering `network(inputs)` at the nodes of `final_nodes`, but for the rounding of other batch sizes, which a
    quantizer enlarges to a step of its grid.

    Args:
        network: The network, in evaluation mode.
        inputs: A batch as the backbone takes it.
        policy: The operating point.
    """
    tree = network.tree
    state = network.backbone.embed(inputs)
    first = pytree.tree_leaves(state)[0]
    rows = torch.arange(len(first), device=first.device)
    nodes = torch.full_like(rows, first_node(network, policy))
    logits: Tensor | None = None
    groups: dict[int, list[Group]] = {policy.first_width: [(rows, nodes.clone(), state)]}
    for segment in range(tree.segments):
        arrived, groups = groups, defaultdict(list)
        for width, parts in arrived.items():
            own, here, state = merge(parts)
            state = network.run_segment(segment, width, state)
            if segment == tree.segments - 1:
                found, after = network.backbone.classify(state), here
            else:
                features = network.read(segment, state)
                found = network.exit_logits_at(segment, width, features)
                statistics = uncertainty_statistics(found)
                after = _decide(network, here, Known(statistics, pooled(features)), policy.tradeoff)
            if logits is None:
                logits = found.new_empty(len(rows), found.shape[1])
            logits[own], nodes[own] = found.to(logits.dtype), after
            for node in after[after != here].unique().tolist():
                going = (after == node).nonzero().squeeze(1)
                groups[tree.nodes[node][-1]].append(select((own, after, state), going))
    assert logits is not None
    exits, macs, bitops = (
        torch.tensor(values, device=nodes.device)[nodes]
        for values in ([tree.exit(node) for node in range(len(tree.nodes))], network.node_macs, network.node_bitops)
    )
    return RoutedPaths(logits, nodes, exits, macs, bitops)


def _decide(network: QuantizedNetwork, nodes: Tensor, known: Known, tradeoff: float) -> Tensor:
    after = nodes.clone()
    for node in nodes.unique().tolist():
        here = (nodes == node).nonzero().squeeze(1)
        errors = network.predictors[node](Known(known.statistics[here], known.features[here])).sigmoid()
        after[here] = next_nodes(network, node, errors, tradeoff)
    return after


def merge(parts: list[Group]) -> Group:
    """Put groups together; states of different lengths (texts whose padding was dropped) are padded with zeros again.

    Example:
        >>> row = torch.tensor([0])
        >>> merge([(row, row, torch.ones(1, 2)), (row, row, torch.ones(1, 1))])[2].tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    return parts[0] if len(parts) == 1 else pytree.tree_map(_join, *parts)


def _join(*tensors: Tensor) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(rows.shape[1:] for rows in tensors), strict=True)]
    padded = []
    for rows in tensors:
        missing = [size - have for size, have in zip(largest, rows.shape[1:], strict=True)]
        padded.append(F.pad(rows, [side for size in reversed(missing) for side in (0, size)]) if any(missing) else rows)
    return torch.cat(padded)
