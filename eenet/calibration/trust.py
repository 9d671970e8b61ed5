"""What a calibration changes at an operating point: tempered probabilities, and conformal sets."""

from typing import Any

import torch
from torch import Tensor

from eenet.calibration.conformal import coverage_rows, prediction_sets, summarise_coverage
from eenet.calibration.points import OperatingPoint
from eenet.metrics import sample_statistics, summarise

CALIBRATED = ("nll", "ece", "ece_mass", "brier")
"""Figures that a temperature changes."""


def calibrated_figures(statistics: Tensor) -> dict[str, float]:
    """The figures of `CALIBRATED`, from `sample_statistics` of tempered logits, `(samples, 6)`."""
    figures = summarise(statistics)
    return {key: figures[key] for key in CALIBRATED}


def trust_records(
    point: OperatingPoint, temperatures: Tensor, logits: Tensor, nodes: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """What `trust` needs of every sample of a batch, in place of its logits.

    Args:
        point: The operating point.
        temperatures: Of every node of the point's network, `(nodes,)`.
        logits: That samples left with, `(batch, classes)`.
        nodes: Where they left, `(batch,)`; in a chain, exits.
        labels: `(batch,)`.

    Returns:
        `tempered`, `sample_statistics` of the tempered logits, `(batch, 6)`; `covered` and `sizes`, int32
        `(batch, sets)`: whether each conformal set of the point holds the true class, and how many classes it holds.
        The sets are made from the untempered probabilities, as in JEI-DNN.
    """
    tempered = logits / temperatures.to(logits)[nodes].unsqueeze(1)
    probabilities = logits.softmax(-1)
    found = labels.new_empty(2, len(labels), len(point.conformal), dtype=torch.int32)
    for column, quantiles in enumerate(point.conformal.values()):
        sets = prediction_sets(probabilities, nodes, quantiles.values.to(logits))
        found[0, :, column] = sets.gather(1, labels[:, None]).squeeze(1)
        found[1, :, column] = sets.sum(1)
    return {"tempered": sample_statistics(tempered, labels), "covered": found[0], "sizes": found[1]}


def trust(
    point: OperatingPoint,
    tempered: Tensor,
    covered: Tensor,
    sizes: Tensor,
    exits: Tensor,
    labels: Tensor,
    num_exits: int,
) -> dict[str, Any]:
    """Calibration figures after temperature scaling, and coverage and size of the conformal sets.

    Args:
        point: The operating point.
        tempered: Of all samples, from `trust_records`, like the next two.
        covered: `(samples, sets)`.
        sizes: `(samples, sets)`.
        exits: Where samples left, `(samples,)`.
        labels: `(samples,)`.
        num_exits: Of the network.

    Returns:
        `asked` and `got` of the point; `calibrated`, figures of the tempered probabilities; `conformal`, a row per mode
        and miscoverage with `coverage` and `set_size`, over all samples and over those of each exit (and class, where
        quantiles are of classes), and the quantiles' `rule` and `fallbacks`.
    """
    sets = [
        {
            "mode": mode,
            "alpha": alpha,
            "rule": found.rule,
            "fallbacks": found.fallbacks,
            **summarise_coverage(covered[:, column], sizes[:, column], exits, num_exits),
            **(
                {"classes": coverage_rows(covered[:, column], sizes[:, column], labels, found.values.shape[1])}
                if mode == "per_class"
                else {}
            ),
        }
        for column, ((mode, alpha), found) in enumerate(point.conformal.items())
    ]
    return {
        "asked": point.asked,
        "got": point.got,
        "calibrated": calibrated_figures(tempered),
        "conformal": sets,
    }
