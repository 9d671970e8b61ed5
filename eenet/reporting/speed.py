"""What `eenet bench` found, as a table and a figure.

Fields of `bench.json`: `schema`, `run`, `data`, `split`, `device`, `threads`, `dtype`, `torch`, `runtime`, `compiled`,
`rounds`, `warm_up_rounds` and `batches`, one for each batch size: `batch_size`, `samples`, `overhead` (time of the
routed network that nobody leaves divided by that of the full network, minus 1) and `rows`, see `eenet.runtime.race`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from eenet.errors import UserError
from eenet.profile import Seconds
from eenet.reading import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bench = dict[str, Any]
"""Plain JSON values with the fields above."""

FIELDS = {"device", "threads", "dtype", "torch", "runtime", "compiled", "batches"}
"""Without which times say nothing."""


def read_bench(path: Path) -> Bench | None:
    """What `eenet bench` wrote, `None` where it was not run; a `UserError` where the file is damaged."""
    if not path.is_file():
        return None
    try:
        bench = read_json(path)
        if not isinstance(bench, dict) or not bench.keys() >= FIELDS:
            raise ValueError(f"lacks some of {', '.join(sorted(FIELDS))}")
    except ValueError as error:
        raise UserError(path.name, str(path), "cannot be read; `eenet bench` writes it") from error
    return bench


def conditions(bench: Bench) -> str:
    """On what it was measured."""
    compiled = "ONNX Runtime" if bench["runtime"] == "onnx" else "compiled" if bench["compiled"] else "eager"
    return f"{bench['device']}, {bench['threads']} threads, {bench['dtype']}, torch {bench['torch']}, {compiled}"


def speed_table(bench: Bench) -> Table:
    """Latency, throughput and speed-up of every contender at every batch size."""
    where = f"{bench['run']} on {bench['data']}, {bench['split']} split, {bench['rounds']} rounds"
    table = Table(title=f"{where}\n{conditions(bench)}")
    table.add_column("")
    quantized = "bitops_speedup" in bench["batches"][0]["rows"][0]
    for heading in (
        *("p50 ms", "p95 ms", "samples/s", "speed-up in MACs"),
        *(["in BitOPs"] if quantized else []),
        *("speed-up by the clock", "clock / MACs"),
    ):
        table.add_column(heading, justify="right")
    for batch in bench["batches"]:
        table.add_section()
        table.add_row(f"batch {batch['batch_size']}, {batch['samples']} samples", style="italic")
        for row in batch["rows"]:
            table.add_row(
                row["name"],
                f"{row['p50_ms']:.2f}",
                f"{row['p95_ms']:.2f}",
                f"{row['throughput']:.0f}",
                f"{row['theoretical_speedup']:.3f}",
                *([f"{row['bitops_speedup']:.3f}"] if quantized else []),
                f"{row['realised_speedup']:.3f}",
                f"{row['ratio']:.3f}",
                style="bold" if row["kind"] == "routed" else "",
            )
    return table


def profile_table(found: Seconds) -> Table:
    """What each part takes, and what a sample that leaves at each exit takes."""
    where = f"{found.device}, {found.runtime}, {found.threads} threads"
    full = f"the full network takes {1000 * found.full:.3f}"
    table = Table(title=f"milliseconds of a batch of {found.batch_size}: {where}; {full}")
    for heading in ("exit", "stages", "head", "gate", "hand-over", "leaving there, per sample"):
        table.add_column(heading, justify="right")
    last = len(found.segments) - 1
    for exit, (segment, whole) in enumerate(zip(found.segments, found.per_sample, strict=True)):
        early = (found.heads, found.gates, found.hand_overs)
        parts = [segment, *([part[exit] for part in early] if exit < last else [None] * 3), whole]
        table.add_row(str(exit), *("" if part is None else f"{1000 * part:.4f}" for part in parts))
    return table


def speed_figure(bench: Bench) -> "Figure":
    """Speed-up by the clock against speed-up in MACs, a panel for each batch size; on the dotted line they agree."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(bench["batches"]) + 0.5, 4), layout="constrained", dpi=72)
    for axes, batch in zip(figure.subplots(1, len(bench["batches"]), squeeze=False)[0], bench["batches"], strict=True):
        rows = batch["rows"]
        most = max(row["theoretical_speedup"] for row in rows)
        axes.plot([1, most], [1, most], ":", color="0.5")
        static = [row for row in rows if row["kind"] in ("full", "static")]
        static.sort(key=lambda row: row["theoretical_speedup"])
        axes.plot(*_speedups(static), "o-", color="0.5", label="full network and static exits")
        for row in rows:
            if row["kind"] in ("routed", "overhead"):
                marker = "*" if row["kind"] == "routed" else "x"
                axes.plot(*_speedups([row]), marker, markersize=11, label=row["name"])
        axes.set_title(f"batch {batch['batch_size']}")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.supxlabel("speed-up in MACs")
    figure.supylabel("speed-up by the clock")
    return figure


def _speedups(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["theoretical_speedup"] for row in rows], [row["realised_speedup"] for row in rows]
