"""Decoder-only language models with some of their layers: plans, the executor that runs them, generation."""

from eenet.decoding.costs import DecoderCosts, Usage, count_decoder, mean_layers
from eenet.decoding.drafting import SpeculativeExecutor, SpeculativeUsage
from eenet.decoding.executor import Executor, final_hidden, pad_left
from eenet.decoding.exits import ExitingExecutor, ExitRule, Fill, confidence_rule
from eenet.decoding.generation import Generated, Rules, generate, model_rules, stream
from eenet.decoding.network import DecoderNetwork, TokenCosts, TokenFeatures
from eenet.decoding.plans import (
    LayerPlan,
    early_exit,
    full_plan,
    parse_plan,
    random_layers,
    ranked_skipping,
    strided_skipping,
    uniform_skipping,
)
from eenet.decoding.ranking import layer_movement
from eenet.decoding.routed import RoutedExecutor, follow
from eenet.decoding.speculation import stream_drafted

__all__ = [
    "DecoderCosts",
    "DecoderNetwork",
    "Executor",
    "ExitRule",
    "ExitingExecutor",
    "Fill",
    "Generated",
    "LayerPlan",
    "RoutedExecutor",
    "Rules",
    "SpeculativeExecutor",
    "SpeculativeUsage",
    "TokenCosts",
    "TokenFeatures",
    "Usage",
    "confidence_rule",
    "count_decoder",
    "early_exit",
    "final_hidden",
    "follow",
    "full_plan",
    "generate",
    "layer_movement",
    "mean_layers",
    "model_rules",
    "pad_left",
    "parse_plan",
    "random_layers",
    "ranked_skipping",
    "stream",
    "stream_drafted",
    "strided_skipping",
    "uniform_skipping",
]
