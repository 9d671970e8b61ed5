"""What an early exit costs: multiply-accumulate operations (MACs) of every stage, head and gate, from one counter.

The count is PyTorch's `FlopCounterMode` (matrix products, convolutions and attention; elementwise work counts as
nothing), halved. On a CPU that counter misses fused attention, whose formula is added here.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eenet.errors import UserError


def _cpu_attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    batch, heads, queries, dim = query
    keys, value_dim = key[-2], value[-1]
    return 2 * batch * heads * queries * keys * (dim + value_dim)


_MISSING_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}


def count_macs(function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Run a function and count its multiply-accumulate operations.

    Args:
        function: What to run; no gradient is kept.
        args: Its arguments.

    Returns:
        The MACs and what the function returned.

    Example:
        >>> count_macs(torch.nn.Linear(3, 5), torch.zeros(2, 3))[0]
        30
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_MISSING_FORMULAS) as counter:
        result = function(*args)
    return counter.get_total_flops() // 2, result


@dataclass(frozen=True)
class CostProfile:
    """MACs per sample of the parts of an early-exit network with `exits` exits, the last being the backbone's head.

    Attributes:
        embed: What comes before the first stage.
        stages: Each stage.
        classifier: The backbone's own head.
        heads: Each inference module, one per exit but the last.
        gates: Each gate, one per exit but the last.
        exit_stages: The stage after which each early exit reads.
    """

    embed: int
    stages: tuple[int, ...]
    classifier: int
    heads: tuple[int, ...] = ()
    gates: tuple[int, ...] = ()
    exit_stages: tuple[int, ...] = ()

    @property
    def num_exits(self) -> int:
        """Early exits and the last one."""
        return len(self.exit_stages) + 1

    @property
    def full(self) -> int:
        """MACs of the plain backbone, without any inference module or gate: what a user had before."""
        return self.embed + sum(self.stages) + self.classifier

    @property
    def stages_run(self) -> list[int]:
        """Stages that a sample leaving at each exit has run."""
        return [*(stage + 1 for stage in self.exit_stages), len(self.stages)]

    @property
    def cumulative(self) -> list[int]:
        """MACs of a sample that leaves at each exit: stages, inference modules and gates passed, its own included."""
        overhead, totals = 0, []
        for stage, head, gate in zip(self.exit_stages, self.heads, self.gates, strict=True):
            overhead += head + gate
            totals.append(self.embed + sum(self.stages[: stage + 1]) + overhead)
        return [*totals, self.full + overhead]

    @property
    def static(self) -> list[int]:
        """MACs of a static network cut at each exit: the stages and that exit's head, no other head and no gate."""
        early = [
            self.embed + sum(self.stages[: stage + 1]) + head
            for stage, head in zip(self.exit_stages, self.heads, strict=True)
        ]
        return [*early, self.full]

    def fractions(self) -> Tensor:
        """MACs of each exit divided by the plain backbone's, `(exits,)`; the last is a little above 1."""
        return torch.tensor(self.cumulative, dtype=torch.float64) / self.full

    def normalised(self) -> Tensor:
        """The costs `c_l` of the objectives, `(exits,)`: MACs of each exit divided by the last exit's, so `c_L = 1`."""
        cumulative = torch.tensor(self.cumulative, dtype=torch.float64)
        return cumulative / cumulative[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CostProfile":
        """The profile that `to_dict` described."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


def mean_cost(exit_fractions: Sequence[float] | Tensor, per_exit: Sequence[float] | Tensor) -> float:
    """Mean of a per-exit cost over samples of which the given fractions leave at each exit."""
    fractions = torch.as_tensor(exit_fractions, dtype=torch.float64)
    costs = torch.as_tensor(per_exit, dtype=torch.float64)
    if fractions.shape != costs.shape:
        raise UserError("exit_fractions", tuple(fractions.shape), f"there are {len(costs)} exits")
    return float(fractions @ costs)
