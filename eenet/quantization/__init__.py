"""QuEE: segments at several bit-widths and early exits in one routed network (Regol et al., arXiv 2406.14404)."""

from eenet.quantization.backbone import QuantizedBackbone, bitops_profile
from eenet.quantization.bitops import PathCosts, bitops
from eenet.quantization.curves import Point, path_curve, point_for_budget, static_curve, threshold_curve
from eenet.quantization.grid import WIDTHS, Grid, activation_grid, quantize_activation, quantize_weight
from eenet.quantization.network import QuantizedNetwork
from eenet.quantization.paths import PathTree, full_paths, path_name
from eenet.quantization.policy import PathPolicy, final_nodes, predicted_errors
from eenet.quantization.predictors import ErrorPredictor, Known, cluster_targets, fit_predictor
from eenet.quantization.quality import SimplePredictors, judge_predictors, other_predictions
from eenet.quantization.routing import RoutedPaths, route_paths

__all__ = [
    "WIDTHS",
    "ErrorPredictor",
    "Grid",
    "Known",
    "PathCosts",
    "PathPolicy",
    "PathTree",
    "Point",
    "QuantizedBackbone",
    "QuantizedNetwork",
    "RoutedPaths",
    "SimplePredictors",
    "activation_grid",
    "bitops",
    "bitops_profile",
    "cluster_targets",
    "final_nodes",
    "fit_predictor",
    "full_paths",
    "judge_predictors",
    "other_predictions",
    "path_curve",
    "path_name",
    "point_for_budget",
    "predicted_errors",
    "quantize_activation",
    "quantize_weight",
    "route_paths",
    "static_curve",
    "threshold_curve",
]
