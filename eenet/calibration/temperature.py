"""Temperature scaling of every exit, fitted on validation logits."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eenet.calibration.logits import Logits, blocks, spread, take
from eenet.errors import UserError

MAX_TEMPERATURE = 100.0
"""Temperatures lie between its inverse and it."""

SHARPEST = math.log(MAX_TEMPERATURE)
"""The largest `log 1 / T`."""

FIRST_BYTES = 2**26
"""Float32 logits of a much larger split whose temperatures those of all samples are searched from."""

PRECISION = 5e-5
"""The step of Newton's method in `log T` after which none follows: the next would be of the order of its square."""


class Temperatures(NamedTuple):
    """Temperatures of all exits.

    Attributes:
        values: To divide the logits by, from 1 / 100 to 100, `(exits,)` float64.
        doubts: Of the exits whose temperature the samples do not determine: `smoothed` where smoothed labels gave it,
            `limit` where it lies at its limit.
    """

    values: Tensor
    doubts: dict[int, str]

    @classmethod
    def none(cls, exits: int) -> "Temperatures":
        """Those that change nothing, of so many exits."""
        return cls(torch.ones(exits, dtype=torch.float64), {})


def fit_temperatures(logits: Logits, labels: Tensor, names: Sequence[str] | None = None) -> Temperatures:
    """The temperature of each exit that minimises its mean NLL (Guo et al. 2017, section 4.2).

    The NLL of `logits / T` is convex in `1 / T`. Newton's method in `log T`, kept in a bracket, finds the zero of its
    derivative in double precision, for all exits in each of a few passes over the logits.

    An exit that is right on all samples has none: its NLL falls with `T`, to probabilities of 1. But `n` right answers
    are worth a mean confidence of `(n + 1) / (n + 2)` (Laplace's rule of succession) and no more, and with one wrong
    among `n` a mean above it expects fewer errors than there were. An exit above it is fitted to smoothed labels:
    `(n + 1) / (n + 2)` for the true class (Platt 1999, section 2.2) and the rest shared by the others [inferred]. All
    other exits keep the minimum of their NLL.

    Args:
        logits: Of a validation split, `(samples, exits, classes)`.
        labels: `(samples,)`.
        names: What warnings call each exit.

    Returns:
        The temperatures. Doubts are warned of.

    Raises:
        UserError: No samples, or logits that are not finite.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0]], [[4.0, 0.0]], [[4.0, 0.0]], [[4.0, 0.0]]])
        >>> found = fit_temperatures(logits, torch.tensor([0, 0, 0, 1]))
        >>> round(torch.sigmoid(4 / found.values).item(), 6)
        0.75
    """
    samples, exits = logits.shape[:2]
    if not samples:
        raise UserError("validation samples", 0, "temperatures need a validation split with samples")
    searches = [Search() for _ in range(exits)]
    first = max(1, FIRST_BYTES // max(1, 4 * exits * logits.shape[2]))
    if samples > 4 * first:
        keep = spread(samples, first, labels.device)
        run(searches, take(logits, keep), labels[keep], list(range(exits)))
        searches = [Search(search.point if abs(search.point) < SHARPEST else 0.0) for search in searches]
    run(searches, logits, labels, list(range(exits)))
    wrong = 1 / (samples + 2)
    doubtful = [exit for exit, search in enumerate(searches) if search.confidence > 1 - wrong]
    for exit in doubtful:
        searches[exit] = Search()
    run(searches, logits, labels, doubtful, wrong)
    doubts: dict[int, str] = {}
    for exit, search in enumerate(searches):
        name = f"exit {exit}" if names is None else names[exit]
        if exit in doubtful:
            doubts[exit] = "smoothed"
            warnings.warn(_smoothed(name, math.exp(-search.point), samples), stacklevel=2)
        elif abs(search.point) >= SHARPEST:
            doubts[exit] = "limit"
            warnings.warn(_at_limit(name, math.exp(-search.point)), stacklevel=2)
    values = torch.tensor([-search.point for search in searches], dtype=torch.float64).exp()
    return Temperatures(values.clamp(1 / MAX_TEMPERATURE, MAX_TEMPERATURE).to(labels.device), doubts)


def _smoothed(exit: str, temperature: float, samples: int) -> str:
    return (
        f"{exit} is right on (nearly) all of {samples} validation samples, too few to tell how sure it may be: "
        f"its temperature, {temperature:.3g}, is that of labels smoothed to {(samples + 1) / (samples + 2):.4g}"
    )


def _at_limit(exit: str, temperature: float) -> str:
    kind = "tell less than chance" if temperature > 1 else "are nearly equal"
    return f"the temperature of {exit} is at its limit, {temperature:g}: its logits {kind} or have a wrong scale"


@dataclass
class Search:
    """Search for the zero of a function of `log 1 / T` that changes its sign once, from below 0 to above.

    Attributes:
        point: Where the function is looked at next, and the zero at the end; beyond a limit it is the limit.
        low: Largest point known to be below the zero.
        high: Smallest point known to be above it.
        last: The function's value before, for its progress.
        confidence: Mean of the largest probability at the last point looked at.
        done: Whether the point is the zero.
    """

    point: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    last: float = math.inf
    confidence: float = math.nan
    done: bool = False

    def look(self, slope: float, curvature: float, separable: bool = False) -> None:
        """Go on from the derivative of the NLL in `1 / T` at the point and its own derivative.

        Newton's step is taken while it stays between the known sides and the value halves, else the middle, or the
        limit on a side where nothing is known.

        Args:
            slope: The value.
            curvature: Its derivative in `1 / T`.
            separable: No zero exists at a finite `1 / T`.
        """
        if slope < 0:
            self.low = self.point
        elif slope > 0:
            self.high = self.point
        ends = max(self.low, -SHARPEST), min(self.high, SHARPEST)
        if slope == 0 or ends[1] - ends[0] < PRECISION**2:
            self.done = True
            return
        step = -slope / (curvature * math.exp(self.point)) if curvature > 0 else -math.copysign(math.inf, slope)
        newton = min(max(self.point + step, -SHARPEST), SHARPEST)
        halved, self.last = abs(slope) <= abs(self.last) / 2, slope
        if self.low < newton < self.high and halved and not separable:
            self.point, self.done = newton, abs(step) < PRECISION
        elif slope < 0 and self.high == math.inf:
            self.point = SHARPEST
        elif slope > 0 and self.low == -math.inf:
            self.point = -SHARPEST
        else:
            self.point = sum(ends) / 2


def run(searches: list[Search], logits: Logits, labels: Tensor, exits: list[int], wrong: float = 0.0) -> None:
    """Bring the searches of some exits to their ends, each pass over the logits serving all that go on.

    Args:
        searches: Of all exits.
        logits: `(samples, exits, classes)`.
        labels: `(samples,)`.
        exits: Those to search for.
        wrong: Probability of the classes that are not true, together.

    Raises:
        UserError: Logits that are not finite.
    """
    while going := [exit for exit in exits if not searches[exit].done]:
        inverse = torch.tensor(
            [searches[exit].point for exit in going], dtype=torch.float64, device=labels.device
        ).exp()
        means = torch.zeros(4, len(going), dtype=torch.float64, device=labels.device)
        for rows, block in blocks(logits):
            means += derivatives(block[:, going], labels[rows], inverse, wrong) / len(logits)
        bad = [exit for exit, finite in zip(going, means.isfinite().all(0).tolist(), strict=True) if not finite]
        if bad:
            raise UserError("exits", bad, "have logits that are not finite on validation; did their training diverge?")
        for exit, (slope, curvature, confidence, top) in zip(going, means.T.tolist(), strict=True):
            searches[exit].confidence = confidence
            searches[exit].look(slope, curvature, separable=top == 0 and wrong == 0)


def derivatives(logits: Tensor, labels: Tensor, inverse: Tensor, wrong: float = 0.0) -> Tensor:
    """Derivatives of the NLL in `1 / T` at one temperature per exit, and what goes with them, summed over samples.

    In the margins over the true class, `m`, the NLL is `logsumexp(m / T)`; it needs no label and is exactly flat where
    the logits of a sample are equal.

    Args:
        logits: `(samples, exits, classes)`.
        labels: `(samples,)`.
        inverse: `1 / T`, `(exits,)` float64.
        wrong: Probability of the classes that are not true, together.

    Returns:
        `(4, exits)` float64: the first derivative `E_p[m] - E_q[m]` under the probabilities `p` and the smoothed label
        `q`, the second `Var_p[m]`, the confidence, and the largest margin.
    """
    margins = logits.double()
    margins -= margins.gather(2, labels[:, None, None].expand(-1, margins.shape[1], 1))
    weights = margins * inverse[:, None]
    top = weights.amax(2)
    weights.sub_(top[..., None]).exp_()
    total = weights.sum(2)
    weights *= margins
    first = weights.sum(2) / total
    second = (weights * margins).sum(2) / total - first.square()
    if wrong:
        first -= margins.sum(2) * (wrong / max(margins.shape[2] - 1, 1))
    return torch.stack([first, second, 1 / total, top]).sum(1)
