"""From validation data to operating points: thresholds for a budget, temperatures, conformal sets and risk control."""

from eenet.calibration.conformal import (
    ConformalMode,
    conformal_quantile,
    conformal_quantiles,
    coverage,
    prediction_sets,
    set_size,
    summarise_coverage,
    summarise_sets,
    true_class_scores,
)
from eenet.calibration.logits import KnownExits, LogitFile, Logits, read_exits
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
from eenet.calibration.temperature import Temperatures, fit_temperatures
from eenet.calibration.trust import calibrated_figures, trust, trust_records

__all__ = [
    "Calibration",
    "ConformalMode",
    "KnownExits",
    "LogitFile",
    "Logits",
    "OperatingPoint",
    "Scored",
    "Temperatures",
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
    "policy_for_accuracy",
    "policy_for_budget",
    "policy_for_risk",
    "prediction_sets",
    "read_exits",
    "samples_needed",
    "set_size",
    "summarise_coverage",
    "summarise_sets",
    "true_class_scores",
    "trust",
    "trust_records",
]
