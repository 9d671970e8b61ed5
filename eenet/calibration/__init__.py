"""From validation data to operating points: thresholds for a budget."""

from eenet.calibration.thresholds import check_budget, threshold_for_budget

__all__ = ["check_budget", "threshold_for_budget"]
