"""Which stages exits read after: by number, by name, or by cost."""

from collections.abc import Sequence
from typing import Literal

import torch

from eenet.backbones.base import StagedBackbone, to_device
from eenet.costs import count_macs
from eenet.errors import UserError

Exits = list[int] | list[str] | dict[str, list[float]] | Literal["all"]
"""Numbers of stages; names of modules at whose end one ends; `{fractions: [...]}` of the MACs; or all but the last."""


def find_exits(exits: Exits, backbone: StagedBackbone) -> list[int] | Literal["all"]:
    """The stages of exits, as numbers.

    Raises:
        UserError: No stage has such a name, or fractions that are none or meet at one stage.
    """
    if isinstance(exits, dict):
        return stages_at(exits, stage_fractions(backbone))
    if isinstance(exits, list) and all(isinstance(name, str) for name in exits):
        return [backbone.find_stage(str(name)) for name in exits]
    return exits  # type: ignore[return-value]


def stages_at(wish: dict[str, list[float]], reached: list[float]) -> list[int]:
    """The stages before the last that end nearest to fractions of the MACs.

    Args:
        wish: `{"fractions": [...]}`.
        reached: The fraction of all MACs that is spent after each stage.

    Raises:
        UserError: No fractions between 0 and 1, or two that meet.

    Example:
        >>> stages_at({"fractions": [0.25, 0.5]}, [0.1, 0.3, 0.6, 0.9])
        [1, 2]
    """
    fractions = wish.get("fractions") if set(wish) == {"fractions"} else None
    if not fractions or any(not 0 < fraction < 1 for fraction in fractions):
        raise UserError("network.exits", wish, "must be {fractions: [...]}, each between 0 and 1")
    stages = range(len(reached) - 1)
    found = [min(stages, key=lambda stage: abs(reached[stage] - fraction), default=0) for fraction in fractions]
    if sorted(set(found)) != found:
        ends = ", ".join(f"{reached[stage]:.2f}" for stage in stages)
        raise UserError("network.exits", wish, f"must increase and each meet another stage; stages end at {ends}")
    return found


@torch.no_grad()
def stage_fractions(backbone: StagedBackbone) -> list[float]:
    """The fraction of all MACs that is spent after each stage."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        spent, state = count_macs(backbone.embed, to_device(backbone.example_input(), backbone))
        totals = []
        for stage in range(backbone.num_stages):
            macs, state = count_macs(backbone.run_stage, stage, state)
            spent += macs
            totals.append(spent)
        spent += count_macs(backbone.classify, state)[0]
    finally:
        for module, mode in modes:
            module.training = mode
    return [total / max(spent, 1) for total in totals]


def check_exits(exits: list[int] | Literal["all"], num_stages: int) -> list[int]:
    """The early exits' stages.

    Raises:
        UserError: Not increasing, or not among the stages before the last.

    Example:
        >>> check_exits("all", 4), check_exits([1], 4)
        ([0, 1, 2], [1])
    """
    if exits == "all":
        return list(range(num_stages - 1))
    if not isinstance(exits, list) or not all(isinstance(stage, int) for stage in exits):
        raise UserError("network.exits", exits, "must be `all` or a list of stage numbers")
    if any(not 0 <= stage < num_stages - 1 for stage in exits):
        raise UserError(
            "network.exits",
            exits,
            f"early exits read after stages 0 to {num_stages - 2}; the backbone's own head after the last stage, "
            f"{num_stages - 1}, is always the last exit and is not listed",
        )
    if sorted(set(exits)) != exits:
        raise UserError("network.exits", exits, f"must be increasing, such as {sorted(set(exits))}")
    return exits


def segment_stages(exit_stages: Sequence[int], num_stages: int) -> list[list[int]]:
    """The stages of each segment, which ends at an exit.

    Example:
        >>> segment_stages([1], 4)
        [[0, 1], [2, 3]]
    """
    ends = [*exit_stages, num_stages - 1]
    starts = [0, *(stage + 1 for stage in exit_stages)]
    return [list(range(start, end + 1)) for start, end in zip(starts, ends, strict=True)]
