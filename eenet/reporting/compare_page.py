"""A comparison as one page of HTML that needs nothing else: figures are inside it, and every text is escaped."""

import base64
from collections.abc import Mapping
from html import escape

from eenet import __version__
from eenet.errors import command as quoted
from eenet.reporting.compare_curves import Comparison
from eenet.reporting.compare_table import Sheet, areas_sheet, definitions, exits_sheet, points_sheet
from eenet.reporting.compare_verdict import latency_sheet, verdict

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; min-width: 34rem; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; } th { white-space: normal; }
th:first-child, td:first-child, .words :is(th, td) { text-align: left; }
.words td { white-space: normal; overflow-wrap: anywhere; }
th:first-child, td:first-child { min-width: 9rem; } thead, tbody { border-bottom: 1px solid #999; }
tbody tr:nth-child(even) { background: #f4f4f4; } dt { font-weight: 600; } code, p { overflow-wrap: anywhere; }
"""

CAPTIONS = {
    "accuracy_cost": "Accuracy against MACs. Full lines: the operating points, with one standard deviation over seeds. "
    "Dashed: random routing at the same exit fractions. Dotted: the static exits of every run. Black: static models. "
    "Grey: the full network. "
    "The grey band is where the area is taken.",
    "accuracy_bitops": "Accuracy against BitOPs. Full lines: the operating points, with one standard deviation over "
    "seeds. Dotted: static networks cut at an exit. Dashed: early exits by the maximum probability over the segments "
    "of QuEE's network, at the threshold and width that are best on its validation samples for each budget.",
    "calibration_cost": "Calibration against MACs, lower is better. Random routing has no line for ECE, which is not a "
    "mixture.",
    "exit_histogram": "Where samples leave, mean over seeds; the first exit on the left.",
}


def page(comparison: Comparison, figures: Mapping[str, str], command: str) -> str:
    """The page.

    Args:
        comparison: What to show.
        figures: SVGs by the names of `CAPTIONS`.
        command: The command line that made it.
    """
    areas, drawn = areas_sheet(comparison), [_figure(*figure) for figure in figures.items()]
    parts = [
        f"<h1>Comparison on {escape(comparison.title)}</h1>",
        *drawn[:1],
        *(f"<p><strong>{escape(line)}</strong></p>" for line in verdict(comparison)),
        _table(latency_sheet(comparison)),
        _table(points_sheet(comparison)),
        _table(areas),
        *(f"<p>{escape(line)}</p>" for line in areas.caption.splitlines()[1:]),  # its definition is below
        *drawn[1:],
        _table(exits_sheet(comparison)),
        _definitions(definitions(comparison)),
        _provenance(comparison),
        _runs(comparison, command),
    ]
    title = f"<title>eenet: {escape(comparison.title)}</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _provenance(comparison: Comparison) -> str:
    if not comparison.same_rows_known:
        return "<p>The runs do not say which samples their split holds: that they are the same is taken on trust.</p>"
    record, split = comparison.reference.results["data_split"], comparison.reference.results["split"]
    return f"<p>{record['sizes'][split]:,} samples, the same in all runs, digest {escape(record['digest'][split])}.</p>"


def _table(sheet: Sheet, kind: str = "") -> str:
    if not sheet.sections:
        return ""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in sheet.headings)
    body = "".join(_section(name, rows, len(sheet.headings)) for name, rows in sheet.sections.items())
    table = f"<table{kind}><thead><tr>{head}</tr></thead>{body}</table>"
    return f'<h2>{escape(sheet.title)}</h2><div class="wide">{table}</div>'


def _section(name: str, rows: list[list[str]], columns: int) -> str:
    title = f'<tr><th colspan="{columns}">{escape(name)}</th></tr>' if name else ""
    return f"<tbody>{title}{''.join(map(_row, rows))}</tbody>"


def _row(cells: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _figure(name: str, svg: str) -> str:
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    caption = escape(CAPTIONS[name])
    title = escape(name.replace("_", " "))
    return (
        f'<figure><div class="wide"><img src="{source}" alt="{title}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _definitions(meanings: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}.</dd>" for name, meaning in meanings.items())
    return f"<h2>Definitions</h2><dl>{items}</dl>"


def _runs(comparison: Comparison, command: str) -> str:
    rows = [
        [
            str(run.folder),
            run.results["method"],
            str(run.results.get("seed")),
            ", ".join(f"{name} {version}" for name, version in run.results["versions"].items()),
            quoted("test", "--config", run.folder / "config.yaml").strip("`"),
        ]
        for run in comparison.runs
    ]
    sheet = Sheet("Runs", ["folder", "method", "seed", "versions", "results made by"], {"": rows}, "")
    table = _table(sheet, ' class="words"')
    return f"{table}<p>This page was made by eenet {escape(__version__)}: <code>{escape(command)}</code></p>"
