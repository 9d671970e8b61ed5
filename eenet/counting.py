"""Counting what the parts of a network with exits cost, on one example input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones.base import State
from eenet.costs import count_operators
from eenet.errors import UserError
from eenet.gates import Memory
from eenet.profile import CostProfile

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork


def count_costs(network: EarlyExitNetwork) -> CostProfile:
    """Count the MACs of each part on one example input; what an exit reads is made, and counted, with its head.

    Operators without a count, and stages and heads whose weights count nothing, are named in the profile and warned of.
    """
    backbone, uncounted = network.backbone.plain, list[str]()

    def count(part: str, function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
        found = count_operators(function, *args)
        idle = not found.macs and found.weighs and part.startswith(("stage", "head"))
        uncounted.extend(f"{part}: {name}" for name in (found.unknown or (("its weights",) if idle else ())))
        return found.macs, found.result

    def head(exit: int, state: State, before: Any) -> tuple[tuple[Tensor, Any], Tensor]:
        features = network.read(exit, state)
        return network.logits_at(exit, features, before), features

    def gate(exit: int, logits: Tensor, features: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        read = network.gate_input(logits, features)
        return network.gate.at(exit, read, memory if exit else network.gate.start(read))

    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        weight = next(network.parameters())
        example = pytree.tree_map(
            lambda rows: rows.to(weight if rows.is_floating_point() else weight.device), backbone.example_input()
        )
        embed, state = count("embed", backbone.embed, example)
        stages: list[int] = []
        heads: list[int] = []
        gates: list[int] = []
        memory: Memory = ()
        before: Any = ()
        for stage in range(backbone.num_stages):
            macs, state = count(f"stage {stage}", backbone.run_stage, stage, state)
            stages.append(macs)
            if stage in network.exit_stages:
                exit = len(heads)
                macs, ((logits, before), features) = count(f"head {exit}", head, exit, state, before)
                heads.append(macs)
                macs, (_, memory) = count(f"gate {exit}", gate, exit, logits, features, memory)
                gates.append(macs)
        classifier, _ = count("classifier", backbone.classify, state)
    finally:
        for module, mode in modes:
            module.training = mode
    if uncounted:
        problem = "has no count; every figure in MACs and BitOPs is too low by it"
        warnings.warn(f"costs: {', '.join(uncounted)} {problem}", stacklevel=2)
    profile = CostProfile(
        embed,
        tuple(stages),
        classifier,
        tuple(heads),
        tuple(gates),
        tuple(network.exit_stages),
        tuple(uncounted),
        network.link.connects,
        network.backbone.stage_bitops,
        network.backbone.outer_bitops,
    )
    if not profile.full:
        problem = "counts 0 MACs, of which exits could save none; the model has to multiply matrices, or convolve"
        raise UserError("network.backbone", type(backbone).__name__, problem)
    return profile
