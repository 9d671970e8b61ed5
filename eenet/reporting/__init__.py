"""What a run found: the results of a split as plain values, written whole, drawn and tabulated."""

from eenet.reporting.console import make_console, show, tell
from eenet.reporting.figures import (
    accuracy_cost_figure,
    exit_histogram_figure,
    exits_over_training_figure,
    reliability_figure,
    save_figure,
)
from eenet.reporting.machine import machine
from eenet.reporting.results import (
    SCHEMA,
    Results,
    chosen_rows,
    evaluate,
    gather_exits,
    operating_point,
    read_results,
    static_exits,
    widest_nodes,
    write_json,
    write_text,
)
from eenet.reporting.table import (
    calibration_table,
    conformal_table,
    not_chosen_lines,
    results_table,
    widths_table,
)

__all__ = [
    "SCHEMA",
    "Results",
    "accuracy_cost_figure",
    "calibration_table",
    "chosen_rows",
    "conformal_table",
    "evaluate",
    "exit_histogram_figure",
    "exits_over_training_figure",
    "gather_exits",
    "machine",
    "make_console",
    "not_chosen_lines",
    "operating_point",
    "read_results",
    "reliability_figure",
    "results_table",
    "save_figure",
    "show",
    "static_exits",
    "tell",
    "widest_nodes",
    "widths_table",
    "write_json",
    "write_text",
]
