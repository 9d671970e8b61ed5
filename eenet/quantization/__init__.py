"""Quantization: grids, ranges, layers, and networks whose parts run at several bit-widths.

QuEE (Regol et al., arXiv 2406.14404) routes over the paths of a `QuantizedNetwork`.
"""

from eenet.quantization.backbone import QuantizedBackbone
from eenet.quantization.grid import WIDTHS, Grid, activation_grid, quantize_activation, quantize_weight
from eenet.quantization.network import QuantizedNetwork
from eenet.quantization.predictors import cluster_targets, fit_predictor
from eenet.quantization.quality import SimplePredictors, judge_predictors, other_predictions

__all__ = [
    "WIDTHS",
    "Grid",
    "QuantizedBackbone",
    "QuantizedNetwork",
    "SimplePredictors",
    "activation_grid",
    "cluster_targets",
    "fit_predictor",
    "judge_predictors",
    "other_predictions",
    "quantize_activation",
    "quantize_weight",
]
