"""What can be asked of a validation split: checked before any work, met one by one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from eenet.calibration.conformal import ConformalMode, QuantileRule, check_alpha
from eenet.calibration.points import OperatingPoint, check_names, point_name
from eenet.calibration.risk import check_level
from eenet.calibration.search import check_budget, check_drop
from eenet.errors import UnmetError, UserError

BUDGETS = ("budget", "budget-macs", "budget-bitops", "budget-ms")
"""Wishes for a mean cost: fractions of the full network's MACs, MACs, fractions of its BitOPs, and milliseconds."""

WISHES = (*BUDGETS, "max-accuracy-drop", "risk")
"""What can be asked of a classifier."""

DECODER_WISHES = ("budget", "max-disagreement", "max-perplexity-increase", "max-rouge-drop", "risk")
"""What can be asked of a decoder's exits."""

MODES: tuple[ConformalMode, ...] = get_args(ConformalMode)

RULES: tuple[QuantileRule, ...] = get_args(QuantileRule)

RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "budget-macs": (lambda value: 0 < value < float("inf"), "is a mean number of MACs per sample, above 0"),
    "budget-bitops": (lambda value: 0 < value < float("inf"), "is a fraction of the float network's BitOPs, above 0"),
    "budget-ms": (lambda value: 0 < value < float("inf"), "is a mean number of milliseconds per sample, above 0"),
    "max-disagreement": (lambda value: 0 <= value < 1, "is a share of tokens, at least 0 and below 1"),
    "max-perplexity-increase": (lambda value: 0 <= value < float("inf"), "must be a number of percent, at least 0"),
    "max-rouge-drop": (lambda value: 0 <= value <= 100, "is a number of points of ROUGE-L, from 0 to 100"),
}
"""Which values of a wish make sense, where the library does not check them."""


@dataclass(frozen=True)
class Wishes:
    """What is asked for.

    Attributes:
        values: By wish, such as `{"budget": [0.5, 0.75]}`.
        delta: Probability that a risk certificate is wrong.
        alphas: Miscoverages of the conformal sets.
        modes: Of the conformal sets.
        rule: Of their quantiles.
        dearest: Meet a budget by the dearest setting within it instead of the most accurate.
        place: Drop early exits without which a wish is met no worse.

    Raises:
        UserError: A value makes no sense.
    """

    values: dict[str, list[float]]
    delta: float = 0.1
    alphas: list[float] = field(default_factory=lambda: [0.1])
    modes: tuple[ConformalMode, ...] = MODES[:3]
    rule: QuantileRule = "jei_dnn"
    dearest: bool = False
    place: bool = False

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[float], Any]] = {
            "budget": check_budget,
            "max-accuracy-drop": check_drop,
            "risk": lambda value: check_level(value, self.delta),
        }
        for wish, value in self:
            if wish in checks:
                checks[wish](value)
            elif not RANGES[wish][0](value):
                raise UserError(wish, value, RANGES[wish][1])
        for wish, values in self.values.items():
            check_names([*dict.fromkeys(values)], wish)
        for alpha in self.alphas:
            check_alpha(alpha)
        if not self.modes or not set(self.modes) <= set(MODES):
            raise UserError("conformal", ",".join(self.modes), f"must be some of {', '.join(MODES)}, between commas")
        if self.rule not in RULES:
            raise UserError("quantile", self.rule, f"must be one of {', '.join(RULES)}")

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return ((wish, value) for wish, values in self.values.items() for value in values)

    def require(self, known: Iterable[str], problem: str) -> None:
        """Raise a `UserError` for all wishes but some."""
        for wish, values in self.values.items():
            if values and wish not in known:
                raise UserError(wish, values, problem)

    def forbid(self, unknown: Iterable[str], problem: str) -> None:
        """Raise a `UserError` for some wishes."""
        self.require([wish for wish in self.values if wish not in unknown], problem)

    def asked(self, wish: str, value: float) -> dict[str, float]:
        """What a point was chosen for, as it records it."""
        how = {"delta": self.delta} if wish == "risk" else {"dearest": 1.0} if self.dearest and wish in BUDGETS else {}
        return {wish: value, **how, **({"place": 1.0} if self.place else {})}


@dataclass
class Granted:
    """What a validation split gave.

    Attributes:
        points: Operating points by name.
        unmet: Why other wishes, and conformal sets, were not met.
    """

    points: dict[str, OperatingPoint] = field(default_factory=dict)
    unmet: list[UnmetError] = field(default_factory=list)


def grant(policy: str, wishes: Wishes, choose: Callable[[str, float], OperatingPoint]) -> Granted:
    """Meet every wish that can be met."""
    granted = Granted()
    for wish, value in wishes:
        try:
            granted.points[point_name(policy, wish, value, wishes.place)] = choose(wish, value)
        except UnmetError as error:
            granted.unmet.append(error)
    return granted
