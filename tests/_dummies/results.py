"""Results of runs that never ran, with figures that are easy to check."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eenet.reporting import SCHEMA

EXIT_ACCURACIES = (0.5, 0.8)


def make_results(
    points: Sequence[tuple[str, float, float]] = (("learned", 0.5, 0.7),),
    *,
    full: int = 1000,
    given: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A run of two exits of half and all of the MACs.

    Args:
        points: Name, share leaving at the first exit, and accuracy of each operating point.
        full: MACs of the plain backbone.
        given: What the run was given beside the defaults.
        fields: Of the heading, instead of the defaults.
    """

    def row(name: str, share: float, accuracy: float) -> dict[str, Any]:
        macs = full * (1 - share / 2)
        calibration = {"nll": 2 * (1 - accuracy), "ece": 0.1 * accuracy, "brier": 1 - accuracy}
        return {"name": name, "accuracy": accuracy, **calibration, "macs": macs, "exit_fractions": [share, 1 - share]}

    return {
        "schema": SCHEMA,
        "method": "jei_dnn",
        "identity": {"gate": "UncertaintyGate", "heads": ["LinearHead"], "lambda": 1, "fields": given or {}},
        "data": "noise",
        "data_split": {"sizes": {"test": 100}, "digest": {"test": "abc", "train": "def"}},
        "backbone": {"family": "ViT", "depth": 2},
        "exit_stages": [0],
        "seed": 0,
        "split": "test",
        "costs": {"embed": 0, "stages": [full // 2, full // 2], "classifier": 0, "exit_stages": [0]},
        "versions": {"eenet": "0.1.0", "torch": "2"},
        "operating_points": [row(*point) for point in points],
        "exits": [row(f"exit {n}", 1.0 - n, accuracy) for n, accuracy in enumerate(EXIT_ACCURACIES)],
        **fields,
    }


def make_static(full: int, accuracy: float, **fields: Any) -> dict[str, Any]:
    """A run of a static model."""
    results = make_results([("full", 0.0, accuracy)], full=full, method="backbone", exit_stages=[], **fields)
    for key in ("operating_points", "exits"):
        results[key] = [{**results[key][-1], "accuracy": accuracy, "macs": full, "exit_fractions": [1.0]}]
    return results


def write_run(folder: Path, results: dict[str, Any]) -> str:
    """Write the results of a run into its folder."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)
