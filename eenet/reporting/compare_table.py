"""Tables of a comparison, as cells that the terminal and the page both show."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from eenet.reporting.compare import Point, Spread
from eenet.reporting.compare_curves import KINDS, Area, Comparison
from eenet.reporting.table import si

FORMATS = {
    "accuracy": (100, ".2f"),
    "balanced_accuracy": (100, ".2f"),
    "macro_f1": (100, ".2f"),
    "nll": (1, ".3f"),
    "ece": (100, ".2f"),
    "brier": (1, ".3f"),
    "aurc": (100, ".2f"),
    "macs_fraction": (100, ".1f"),
    "bitops_fraction": (100, ".2f"),
    "gain": (100, "+.2f"),
}
"""Factor and format of each figure."""

HEADINGS = {
    "accuracy": "accuracy %",
    "balanced_accuracy": "balanced %",
    "macro_f1": "F1 %",
    "nll": "NLL",
    "ece": "ECE %",
    "brier": "Brier",
    "aurc": "AURC %",
}
PAGE_ONLY = ("Brier", "AURC %", "random NLL", "leaving at each exit %")
DASH = "–"


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: Above it.
        headings: Of the columns.
        sections: Rows of cells by the name of their section.
        caption: Below it: what its numbers mean.
    """

    title: str
    headings: list[str]
    sections: dict[str, list[list[str]]]
    caption: str


def definitions(comparison: Comparison) -> dict[str, str]:
    """What every figure of the comparison is."""
    low, high = (f"{100 * budget:g} %" for budget in comparison.budgets)
    full = si(comparison.reference.full_macs)
    return {
        "MACs %": f"mean multiply-accumulate operations per sample, in percent of the {full} of the dearest plain "
        f"backbone compared ({comparison.reference.folder}); a static exit pays for its own head only, a routed sample "
        "for every head and gate it passed",
        "BitOPs %": "mean over samples of MACs times weight bits times activation bits, in percent of the same plain "
        "backbone's at 32 bits; shown where a run is quantized, and equal to MACs % for one that is not",
        "±": "sample standard deviation over the seeds; absent with one seed",
        "area": f"mean accuracy (%) over all budgets between {low} and {high} of the MACs, which is the area under the "
        "accuracy/cost curve divided by the distance of the two budgets. The curve is piecewise linear through the "
        "operating points in the order of their cost, each raised to the best accuracy of those that cost no more, and "
        "flat beyond the dearest one; below the cheapest one it is undefined. It is taken for each seed that has all "
        "points of the curve, then averaged. Raising picks points by their accuracy on the samples shown, so a line of "
        "more points gains a little",
        "random %, random NLL": "accuracy and NLL expected of random routing, where the same shares of samples leave "
        "at each exit, drawn at random, at the same MACs: exactly the mixture of the static exits' figures. ECE and "
        "AURC are not means over samples, so a mixture's ECE is not the mixture of ECEs, and none is shown",
        "static exits": "the network cut at one exit for all samples",
        "static models": "backbones of other sizes trained alone, of runs of the method backbone",
        "accuracy %": "share of the samples whose predicted class is right",
        "balanced %": "balanced accuracy: mean over the classes with samples of the share of theirs that is right",
        "F1 %": "macro F1: mean over classes of the harmonic mean of precision and recall",
        "over random": "accuracy minus that of random routing, in percentage points",
        "NLL": "mean negative log-likelihood of the true class, in nats",
        "ECE %": "expected calibration error, 15 equal-width confidence bins",
        "Brier": "mean squared error of the probabilities, summed over classes (0 to 2)",
        "AURC %": "area under the risk/coverage curve: mean error rate over all shares of most confident samples",
        "p50 ms": "median time of a batch, as eenet bench measured it beside the full network on the machine it names",
        "times as fast": "as the full network: what the MACs promise, and what the clock showed",
    }


def areas_sheet(comparison: Comparison) -> Sheet:
    """One number for each curve, beside those of random routing and of the static exits."""
    low, high = (f"{100 * budget:g}" for budget in comparison.budgets)
    rows, notes = [], []
    for curve in comparison.curves:
        cells = [_area(curve.areas[kind]) if kind in curve.areas else "" for kind in KINDS]
        seeds = " or ".join(map(str, sorted({len(group.seeds) for group in curve.groups})))
        rows.append([curve.name, ", ".join(group.label for group in curve.groups), seeds, *cells])
        notes += [
            f"{curve.name}, {kind.replace('_', ' ')}: {area.note}." for kind, area in curve.areas.items() if area.note
        ]
    headings = ["curve", "runs", "seeds", "area", "area of its random routing", "area of its static exits"]
    caption = "\n".join([f"Area: {definitions(comparison)['area']}.", *notes])
    title = f"Accuracy % over the budgets from {low} % to {high} % of the MACs"
    return Sheet(title, headings, {"": rows}, caption)


def points_sheet(comparison: Comparison) -> Sheet:
    """Every operating point, with what random routing would give in its place."""
    columns = _columns([pair[1] for curve in comparison.curves for pair in curve.points(KINDS[0])])
    costs, sections = _costs(comparison), {}
    for curve in comparison.curves:
        rows = []
        pairs = zip(curve.points(KINDS[0]), curve.points(KINDS[1]), strict=True)
        for (group, point), (_, random) in pairs:
            against = _cells(random, ["accuracy", "nll", "gain"])
            rows.append(
                [
                    f"{group.label}: {point.name}",
                    *_cells(point, [*costs, *columns]),
                    *([""] * 3 if curve.static else against),
                    " ".join(f"{100 * share:.0f}" for share in point.shares),
                ]
            )
        sections[curve.name] = rows
    headings = ["operating point", *costs.values(), *(HEADINGS[key] for key in columns)]
    headings += ["random %", "random NLL", "over random", "leaving at each exit %"]
    return Sheet(f"Operating points on {comparison.title}", headings, sections, "")


def exits_sheet(comparison: Comparison) -> Sheet:
    """Every static exit."""
    groups = [group for curve in comparison.curves if not curve.static for group in curve.groups]
    columns = _columns([point for group in groups for point in group.points(KINDS[2])])
    costs = _costs(comparison)
    sections = {
        group.label: [[point.name, *_cells(point, [*costs, *columns])] for point in group.points(KINDS[2])]
        for group in groups
    }
    headings = ["static exit", *costs.values(), *(HEADINGS[key] for key in columns)]
    return Sheet(f"Static exits on {comparison.title}", headings, sections, "")


def rich_table(sheet: Sheet) -> Table:
    """The sheet for a terminal, without the columns that only the page has room for."""
    table = Table(title=Text(sheet.title), caption=Text(sheet.caption), caption_justify="left")
    shown = [number for number, heading in enumerate(sheet.headings) if heading not in PAGE_ONLY]
    for number in shown:
        table.add_column(Text(sheet.headings[number]), justify="right" if number else "left", no_wrap=not number)
    for name, rows in sheet.sections.items():
        if name:
            table.add_row(Text(name, style="bold"))
        for row in rows:
            table.add_row(*(Text(row[number]) for number in shown))
        table.add_section()
    return table


def _columns(points: list[Point]) -> list[str]:
    return [key for key in HEADINGS if any(key in point.figures for point in points)]


def _costs(comparison: Comparison) -> dict[str, str]:
    return {"macs_fraction": "MACs %"} | ({"bitops_fraction": "BitOPs %"} if comparison.quantized else {})


def _cells(point: Point, columns: list[str]) -> Iterator[str]:
    for key in columns:
        yield _spread(point.figures[key], *FORMATS[key]) if key in point.figures else DASH


def _area(area: Area) -> str:
    return DASH if area.value is None else _spread(area.value, *FORMATS["accuracy"])


def _spread(value: Spread, factor: float, form: str) -> str:
    deviation = "" if value.deviation is None else f"±{factor * value.deviation:{form.removeprefix('+')}}"
    return f"{factor * value.mean:{form}}{deviation}"
