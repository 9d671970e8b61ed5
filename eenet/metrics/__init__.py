"""Metrics of many exits at once: per-sample statistics, kept as synchronised records, and their summaries."""

from eenet.metrics.records import Records
from eenet.metrics.statistics import (
    NUM_BINS,
    STATISTICS,
    area_under_risk_coverage,
    auroc,
    choice_shares,
    class_figures,
    equal_mass_calibration_error,
    failure_auroc,
    per_class,
    sample_statistics,
    summarise,
)

__all__ = [
    "NUM_BINS",
    "STATISTICS",
    "Records",
    "area_under_risk_coverage",
    "auroc",
    "choice_shares",
    "class_figures",
    "equal_mass_calibration_error",
    "failure_auroc",
    "per_class",
    "sample_statistics",
    "summarise",
]
