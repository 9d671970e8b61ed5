"""From validation data to operating points: thresholds for a budget, temperatures, conformal sets and risk control."""

from eenet.calibration.conformal import (
    ConformalMode,
    conformal_quantile,
    conformal_quantiles,
    coverage,
    prediction_sets,
    set_size,
    summarise_sets,
    true_class_scores,
)
from eenet.calibration.risk import certify, check_level, excess_risk_p_values, fixed_sequence, samples_needed
from eenet.calibration.temperature import fit_temperatures
from eenet.calibration.thresholds import check_budget, threshold_for_budget

__all__ = [
    "ConformalMode",
    "certify",
    "check_budget",
    "check_level",
    "conformal_quantile",
    "conformal_quantiles",
    "coverage",
    "excess_risk_p_values",
    "fit_temperatures",
    "fixed_sequence",
    "prediction_sets",
    "samples_needed",
    "set_size",
    "summarise_sets",
    "threshold_for_budget",
    "true_class_scores",
]
