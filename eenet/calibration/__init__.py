"""From validation data to operating points: thresholds for a budget, temperatures, conformal sets and risk control."""

from eenet.calibration.chosen import ChosenOn, objection, weights_digest
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
from eenet.calibration.points import Calibration, OperatingPoint
from eenet.calibration.risk import certify, check_level, excess_risk_p_values, fixed_sequence, samples_needed
from eenet.calibration.scheduler import fit_schedule, fit_scheduler
from eenet.calibration.search import (
    Scored,
    check_budget,
    policy_for_accuracy,
    policy_for_budget,
    policy_for_risk,
)
from eenet.calibration.temperature import fit_temperatures
from eenet.calibration.trust import calibrated_figures, trust

__all__ = [
    "Calibration",
    "ChosenOn",
    "ConformalMode",
    "OperatingPoint",
    "Scored",
    "calibrated_figures",
    "certify",
    "check_budget",
    "check_level",
    "conformal_quantile",
    "conformal_quantiles",
    "coverage",
    "excess_risk_p_values",
    "fit_schedule",
    "fit_scheduler",
    "fit_temperatures",
    "fixed_sequence",
    "objection",
    "policy_for_accuracy",
    "policy_for_budget",
    "policy_for_risk",
    "prediction_sets",
    "samples_needed",
    "set_size",
    "summarise_sets",
    "true_class_scores",
    "trust",
    "weights_digest",
]
