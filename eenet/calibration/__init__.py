"""From validation data to operating points: thresholds for a budget, temperatures, conformal sets and risk control."""

from eenet.calibration.answers import Answers
from eenet.calibration.chosen import ChosenOn, objection, weights_digest
from eenet.calibration.conformal import (
    ConformalMode,
    QuantileRule,
    Quantiles,
    check_alpha,
    conformal_quantile,
    conformal_quantiles,
    coverage,
    prediction_sets,
    set_size,
    summarise_coverage,
    true_class_scores,
)
from eenet.calibration.logits import LogitFile, read_exits
from eenet.calibration.points import Calibration, OperatingPoint
from eenet.calibration.risk import (
    betting_p_value,
    certify,
    check_level,
    check_samples,
    content_order,
    paired_p_value,
    samples_needed,
)
from eenet.calibration.scheduler import fit_schedule, fit_scheduler
from eenet.calibration.search import (
    Scored,
    Sweep,
    check_budget,
    cost_of,
    policy_for_accuracy,
    policy_for_budget,
    policy_for_risk,
    standard_error,
)
from eenet.calibration.temperature import Temperatures, fit_temperatures
from eenet.calibration.trust import calibrated_figures, trust, trust_records

__all__ = [
    "Answers",
    "Calibration",
    "ChosenOn",
    "ConformalMode",
    "LogitFile",
    "OperatingPoint",
    "QuantileRule",
    "Quantiles",
    "Scored",
    "Sweep",
    "Temperatures",
    "betting_p_value",
    "calibrated_figures",
    "certify",
    "check_alpha",
    "check_budget",
    "check_level",
    "check_samples",
    "conformal_quantile",
    "conformal_quantiles",
    "content_order",
    "cost_of",
    "coverage",
    "fit_schedule",
    "fit_scheduler",
    "fit_temperatures",
    "objection",
    "paired_p_value",
    "policy_for_accuracy",
    "policy_for_budget",
    "policy_for_risk",
    "prediction_sets",
    "read_exits",
    "samples_needed",
    "set_size",
    "standard_error",
    "summarise_coverage",
    "true_class_scores",
    "trust",
    "trust_records",
    "weights_digest",
]
