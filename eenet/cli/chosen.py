"""What `eenet calibrate` prints of the points that were chosen."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from eenet.api.calibrating import Calibrated
from eenet.calibration import OperatingPoint
from eenet.decoding import DecoderNetwork
from eenet.errors import some
from eenet.policies import BestWay, PredictedErrors
from eenet.reporting import show
from eenet.reporting.table import wanted
from eenet.tree import Tree, path_name

ON_VALIDATION = (
    "What a point reached (± one standard error) is on the samples that chose it among all settings of its policy, so "
    "that it is a little optimistic; `eenet test` judges it on others."
)

ASSUMPTION = (
    "The certificate holds if later samples are exchangeable with the validation split (drawn from the same source, "
    "independently of it) and that split had no part in training; early stopping on it weakens this."
)

TEACHER_FORCED = (
    "Agreement and perplexity are those of tokens that read the full model's keys and values, as generation with "
    "`--fill recompute` has them; `--fill project`, the default, approximates them. ROUGE-L is of generated texts."
)


def say(found: Calibrated) -> None:
    """Print what was chosen, and what it promises."""
    network = found.run.model.network
    tokens = isinstance(network, DecoderNetwork)
    if found.points:
        show((token_table if tokens else table)(found.points, found.samples))
        print(*[ON_VALIDATION, *([TEACHER_FORCED] if tokens else [])], sep="\n")
        print(f"calibration: {found.file}\nuse it with: eenet test {found.run.options} --point all")
    if not tokens:
        for line in fallback_lines(found.points, network.tree):
            print(line)
        if any("risk" in point.asked for point in found.points.values()):
            print(ASSUMPTION)


def table(points: Mapping[str, OperatingPoint], samples: int) -> Table:
    """What was chosen for a classifier."""
    units = {"macs_fraction": "MACs", "bitops_fraction": "BitOPs"}
    units = {key: name for key, name in units.items() if key in next(iter(points.values())).got}
    widths = {name: widths_of(point) for name, point in points.items()}
    columns = ["widths"] if any(widths.values()) else []
    dropping = any(point.kept is not None for point in points.values())
    costs = [f"{name} %" for name in units.values()]
    timed = ["ms by the clock"] if any("ms" in point.got for point in points.values()) else []
    headings = ("point", "asked", *columns, *(["exits"] if dropping else []), "accuracy %", *costs, *timed)
    found = Table(*headings, title=f"on {samples} validation samples")
    for name, point in points.items():
        accuracy, error = 100 * point.got["accuracy"], 100 * point.got["accuracy_se"]
        shares = [f"{100 * point.got[key]:.1f}" for key in units]
        shares += [f"{point.got['ms']:.3g}" if "ms" in point.got else "" for _ in timed]
        more = [*[widths[name]] * len(columns), *([kept_of(point)] if dropping else [])]
        found.add_row(name, wanted(point.asked), *more, f"{accuracy:.2f} ± {error:.2f}", *shares)
    return found


def widths_of(point: OperatingPoint) -> str:
    """The path of a point, or where its policy begins; nothing in a network of one path."""
    if isinstance(point.policy, PredictedErrors):
        return f"from {point.policy.first_width}, lambda {point.policy.tradeoff:g}"
    if isinstance(point.policy, BestWay):
        return f"from {point.policy.first_width}, threshold {point.policy.threshold:g}"
    return "" if point.path is None else path_name(point.path)


def kept_of(point: OperatingPoint) -> str:
    """The early exits that a point has."""
    return "all" if point.kept is None else ", ".join(map(str, point.kept))


def token_table(points: Mapping[str, OperatingPoint], tokens: int) -> Table:
    """What was chosen for a decoder."""
    headings = ("agreement %", "perplexity +%", "ROUGE-L, full text %", "layers %", "MACs %")
    found = Table("point", "asked", *headings, title=f"{tokens} validation tokens")
    for name, point in points.items():
        got = point.got
        rouge = f"{100 * got['rougeL_full']:.1f}" if "rougeL_full" in got else ""
        agreement = f"{100 * got['agreement']:.1f} ± {100 * got['agreement_se']:.1f}"
        shares = [f"{100 * got[key]:.1f}" for key in ("layers_fraction", "macs_fraction")]
        found.add_row(name, wanted(point.asked), agreement, f"{got['perplexity_increase']:.1f}", rouge, *shares)
    return found


def fallback_lines(points: dict[str, OperatingPoint], tree: Tree) -> list[str]:
    """For each kind of conformal sets a line that says whose quantiles had too few samples of their own.

    Args:
        points: By name.
        tree: The network's, whose nodes those of points without a path are.
    """
    lines = []
    for mode, alpha in dict.fromkeys(key for point in points.values() for key in point.conformal):
        few = {
            name: point.conformal[mode, alpha].fallbacks
            for name, point in points.items()
            if (mode, alpha) in point.conformal and point.conformal[mode, alpha].fallbacks
        }
        if few:
            rows = [row for rows in few.values() for row in rows]
            whole = rows[0]["instead"] == "whole set"
            effect = "their sets hold every class" if whole else "quantiles of all samples, no coverage promised"
            text = "; ".join(
                f"{name}: {_few(rows, tree if points[name].path is None else None)}" for name, rows in few.items()
            )
            lines.append(f"conformal {mode}, alpha {alpha:g}: too few samples, so {effect} ({text})")
    return lines


def _few(rows: list[dict[str, Any]], tree: Tree | None) -> str:
    said = []
    for row in rows:
        whose = f"class {row['class']} has " if "class" in row else ""
        if "exit" in row:
            exit = row["exit"]
            whose = f"{f'exit {exit}' if tree is None else tree.node_name(exit)} has "
        said.append(f"{whose}{row['samples']}")
    return some(said, most=5)
