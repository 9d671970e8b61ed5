"""What a calibration changes at an operating point: tempered probabilities, and conformal sets."""

from typing import Any

from torch import Tensor

from eenet.calibration.conformal import prediction_sets, summarise_sets
from eenet.calibration.points import OperatingPoint
from eenet.metrics import sample_statistics, summarise

CALIBRATED = ("nll", "ece", "ece_mass", "brier")
"""Figures that a temperature changes."""


def calibrated_figures(statistics: Tensor) -> dict[str, float]:
    """The figures of `CALIBRATED`, from `sample_statistics` of tempered logits, `(samples, 6)`."""
    figures = summarise(statistics)
    return {key: figures[key] for key in CALIBRATED}


def trust(point: OperatingPoint, temperatures: Tensor, logits: Tensor, exits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Calibration figures after temperature scaling, and coverage and size of the conformal sets.

    Args:
        point: The operating point.
        temperatures: Of every exit, `(exits,)`.
        logits: That samples left with, `(samples, classes)`.
        exits: Where they left, `(samples,)`.
        labels: `(samples,)`.

    Returns:
        `asked` and `got` of the point; `calibrated`, figures of the tempered probabilities; `conformal`, a row per mode
        and miscoverage with `coverage` and `set_size`, over all samples and over those of each exit (and class, where
        quantiles are of classes), and the quantiles' `rule` and `fallbacks`. The sets are made from the untempered
        probabilities, as in JEI-DNN.
    """
    tempered = logits / temperatures.to(logits)[exits].unsqueeze(1)
    probabilities = logits.softmax(-1)
    sets = [
        {
            "mode": mode,
            "alpha": alpha,
            "rule": found.rule,
            "fallbacks": found.fallbacks,
            **summarise_sets(
                prediction_sets(probabilities, exits, found.values.to(logits)),
                labels,
                exits,
                len(temperatures),
                per_class=mode == "per_class",
            ),
        }
        for (mode, alpha), found in point.conformal.items()
    ]
    return {
        "asked": point.asked,
        "got": point.got,
        "calibrated": calibrated_figures(sample_statistics(tempered, labels)),
        "conformal": sets,
    }
