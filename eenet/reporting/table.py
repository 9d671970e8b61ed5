"""The table printed after `eenet test`."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from eenet.reporting.results import Results, chosen_rows

BOTH = {
    "NLL": ("nll", 1, 3),
    "ECE %": ("ece", 100, 2),
    "ECE mass %": ("ece_mass", 100, 2),
    "Brier": ("brier", 1, 3),
}
"""Figures that temperatures change: where each is, what it is multiplied by, and its digits."""


def results_table(results: Results) -> Table:
    """Accuracy, cost, calibration and accuracy with classes counted alike (balanced, macro F1) of every row.

    Leaving are the samples that leave at each exit. AUROC is of an exit's confidence as a sign that the last exit
    will disagree.
    """
    table = Table(title=f"{results['method']} on {results['data']}, {results['split']} split, seed {results['seed']}")
    table.add_column("")
    quantized = any("bitops_fraction" in row for row in results["exits"] + results["operating_points"])
    headings = ["accuracy %", "MACs %", *(["BitOPs %"] if quantized else []), "NLL", "ECE %", "leaving %", "MACs"]
    headings += [*([] if quantized else ["stages"]), "balanced %", "F1 %", "Brier", "AUROC %"]
    for heading in headings:
        table.add_column(heading, justify="right")
    if uncounted := results.get("costs", {}).get("uncounted"):
        table.caption = f"MACs are too low: {', '.join(uncounted)} has no count"
    for row in results["exits"]:
        table.add_row(*_cells(row, "", quantized))
    table.add_section()
    for row in results["operating_points"]:
        if not row.get("chosen", True):
            table.add_row(f"{row['name']} (not chosen)", *["-"] * len(headings))
            continue
        shares = " ".join(f"{100 * share:.0f}" for share in row["exit_fractions"])
        table.add_row(*_cells(row, shares, quantized), style="bold")
    return table


def not_chosen_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Why points are not chosen and what to do, a line for each reason, to go under the table."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if not row.get("chosen", True):
            names.setdefault(row["why"], []).append(row["name"])
    return [f"not chosen: {', '.join(found)}: {why}" for why, found in names.items()]


def widths_table(parts: Iterable[dict[str, Any]]) -> Table:
    """The bits of weights and activations of every part of a quantized network, and its BitOPs, at each width.

    Args:
        parts: What `quantization` says of them in the results.

    Example:
        >>> row = {"width": 8, "part": "embedding", "macs": 5, "weight_bits": 8, "activation_bits": 8, "bitops": 320}
        >>> widths_table([row]).row_count
        1
    """
    rows = list(parts)
    widths = list(dict.fromkeys(row["width"] for row in rows))
    table = Table("part", "MACs", title="bits of weights x activations, and millions of BitOPs, of every part")
    for width in widths:
        table.add_column(f"stages at {width} bits", justify="right")
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        cells = [f"{row['weight_bits']} x {row['activation_bits']}: {row['bitops'] / 1e6:,.1f}" for row in own]
        if own[0]["macs"]:
            table.add_row(part, f"{own[0]['macs']:,}", *cells)
    return table


def calibration_table(results: Results) -> Table:
    """What a calibration changes: asked and got, figures before and after (T) the temperatures.

    ECE mass is over bins of equal mass.
    """
    doubtful = [row["name"] for row in results["exits"] if row["calibrated"].get("doubt")]
    caption = f"{', '.join(doubtful)}: validation samples do not determine the temperature" if doubtful else None
    table = Table(title="calibrated on the validation split; T: with its temperatures", caption=caption)
    table.add_column("")
    for heading in ("asked", "got", *(f"{name}{after}" for name in BOTH for after in ("", " T")), "AURC %"):
        table.add_column(heading, justify="right")
    for row in results["exits"] + chosen_rows(results):
        table.add_row(
            row["name"],
            *_asked_and_got(row),
            *(f"{size * of[key]:.{digits}f}" for key, size, digits in BOTH.values() for of in (row, row["calibrated"])),
            f"{100 * row['aurc']:.2f}",
        )
    return table


def conformal_table(results: Results) -> Table:
    """Coverage and mean size of the conformal sets of every operating point."""
    table = Table("quantiles", title="conformal sets; *: some quantiles had too few samples of their own")
    for heading in ("asked %", "coverage %", "mean set size"):
        table.add_column(heading, justify="right")
    for row in chosen_rows(results):
        table.add_row(row["name"], style="bold")
        for sets in row["conformal"]:
            table.add_row(
                sets["mode"] + ("*" if sets["fallbacks"] else ""),
                f"{100 * (1 - sets['alpha']):g}",
                f"{100 * sets['coverage']:.1f}",
                f"{sets['set_size']:.2f}",
            )
        table.add_section()
    return table


def wanted(asked: Mapping[str, float]) -> str:
    """What a point was chosen for, in the units of what it reached.

    Example:
        >>> wanted({"budget": 0.6}), wanted({"budget-macs": 1e7}), wanted({"risk": 0.05, "delta": 0.1})
        ('MACs 60 %', 'MACs 10 M', 'risk 0.05, delta 0.1')
    """
    units = {"budget": "MACs", "budget-bitops": "BitOPs"}
    said = {key: f"{unit} {100 * asked[key]:g} %" for key, unit in units.items() if key in asked}
    if "budget-macs" in asked:
        said["budget-macs"] = f"MACs {si(asked['budget-macs'])}"
    return ", ".join(said.get(key, f"{key} {value:g}") for key, value in asked.items())


def _asked_and_got(row: dict[str, Any]) -> tuple[str, str]:
    asked = row.get("asked", {})
    got = f"accuracy {100 * row['accuracy']:.2f} %" if asked else ""
    if "budget" in asked:
        got = f"MACs {100 * row['macs_fraction']:.1f} %"
    elif "budget-macs" in asked:
        got = f"MACs {si(row['macs'])}"
    elif "budget-bitops" in asked:
        got = f"BitOPs {100 * row['bitops_fraction']:.2f} %"
    return wanted(asked), got


def _cells(row: dict[str, Any], shares: str, quantized: bool) -> list[str]:
    return [
        row["name"],
        f"{100 * row['accuracy']:.2f}",
        f"{100 * row['macs_fraction']:.1f}",
        *([f"{100 * row['bitops_fraction']:.2f}"] if quantized else []),
        f"{row['nll']:.3f}",
        f"{100 * row['ece']:.2f}",
        shares,
        si(row["macs"]),
        *([] if quantized else [f"{row['stages_mean']:.2f}"]),
        f"{100 * row['balanced_accuracy']:.2f}",
        f"{100 * row['macro_f1']:.2f}",
        f"{row['brier']:.3f}",
        "" if row.get("failure_auroc") is None else f"{100 * row['failure_auroc']:.1f}",
    ]


def si(value: float) -> str:
    """A count with three digits and the prefix of its thousands.

    Example:
        >>> si(27432192)
        '27.4 M'
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
