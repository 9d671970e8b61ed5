"""What integer arithmetic saves on this machine, and what it does not.

    python benchmarks/quantization.py layers        # one linear layer: float32, bfloat16, int8 of here
    python benchmarks/quantization.py networks      # a vision transformer, whole and routed, by batch size

Prints JSON; `--output` writes it, too. One thread, whose own CPU time is taken, so that other work on the machine
counts little. Variants take turns, and a ratio is the median of the rounds' ratios: above 1 is faster than float32.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from report import finish
from torch import Tensor, nn

from eenet.backbones import ViT
from eenet.gates import ErrorGate
from eenet.quantization import QuantizedNetwork, activation_grid
from eenet.quantization.grid import weight_codes, weight_scales
from eenet.quantization.layers import NativeLinear, SimulatedLayer, Weights

CPU = {"cpu": torch.backends.cpu.get_cpu_capability()}

SHAPES = [(17, 128, 512), (17 * 256, 128, 384), (17 * 256, 128, 512), (17 * 256, 512, 128), (50 * 64, 384, 1536)]
"""Rows, inputs and outputs: layers of an 8x128 transformer with 17 tokens at batch 1 and 256, and of a DeiT-small."""

VIT: dict[str, Any] = {"patch_size": 7, "embed_dim": 128, "depth": 8, "num_heads": 4, "global_pool": "avg"}


def compare(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each variant (least and median) and how many times faster than the first it is."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, run in variants.items():
            start = time.thread_time()
            run()
            if number > 1:  # the first two rounds warm up
                times[name].append(1e3 * (time.thread_time() - start))
    first = next(iter(times.values()))
    return {
        name: {
            "least_ms": min(values),
            "median_ms": statistics.median(values),
            "times_faster": statistics.median(base / value for base, value in zip(first, values, strict=True)),
        }
        for name, values in times.items()
    }


@torch.no_grad()
def layers(rounds: int = 40, output: Path | None = None) -> None:
    """Time one linear layer at several shapes.

    Args:
        rounds: Of all variants.
        output: JSON file.
    """
    torch.set_num_threads(1)
    found = []
    for rows, inputs, outputs in SHAPES:
        layer, values = nn.Linear(inputs, outputs), torch.randn(rows, inputs)
        grid = activation_grid(-4.0, 4.0, 8)
        half, half_values = copy.deepcopy(layer).bfloat16(), values.bfloat16()
        codes = weight_codes(layer.weight, 8).to(torch.int8)
        weights = Weights(codes, weight_scales(layer.weight, 8), torch.zeros(outputs))
        native, simulated = NativeLinear(layer, weights, grid), SimulatedLayer(layer, weights, grid)
        variants: dict[str, Callable[[], Tensor]] = {
            "float32": lambda layer=layer, values=values: layer(values),
            "bfloat16": lambda half=half, values=half_values: half(values),
            "native_int8": lambda native=native, values=values: native(values),
            "simulated_8_bits": lambda simulated=simulated, values=values: simulated(values),
        }
        error = (native(values) - simulated(values)).abs().max() / simulated(values).abs().max()
        shape = {"rows": rows, "inputs": inputs, "outputs": outputs}
        found.append({**shape, "native_error": error.item(), **compare(variants, rounds)})
    finish({**CPU, "layers": found}, output)


@torch.no_grad()
def networks(batches: list[int] | None = None, rounds: int = 15, output: Path | None = None) -> None:
    """Time a vision transformer with random weights and two early exits, whole and routed.

    The predictors run and are overruled: a third of the batch leaves at each exit.

    Args:
        batches: Batch sizes, 1 and 128 by default.
        rounds: Of all variants.
        output: JSON file.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = QuantizedNetwork(ViT("vit_tiny_patch16_224", 10, 28, 1, overrides=VIT), [1, 4], widths=[32, 8]).eval()
    network.calibrate([torch.randn(64, 1, 28, 28)])
    half = copy.deepcopy(network.backbone).bfloat16()
    _ = network.costs  # counted once, and shared by the copies
    integer = copy.deepcopy(network)
    integer.native = True
    routed, routed_integer = overruled(network, 32), overruled(integer, 8)
    found = []
    for batch in batches or [1, 128]:
        images = torch.randn(batch, 1, 28, 28)
        half_images = images.bfloat16()
        variants: dict[str, Callable[[], Any]] = {
            "float32": lambda images=images: network.backbone(images),
            "bfloat16": lambda images=half_images: half(images),
            "native_int8": lambda images=images: integer.twin(8)(images),
            "simulated_8_bits": lambda images=images: network.twin(8)(images),
            "routed_float32": lambda images=images: routed.route(images, network.policy(32, 0.0)),
            "routed_native_int8": lambda images=images: routed_integer.route(images, network.policy(8, 0.0)),
        }
        found.append({"batch": batch, **compare(variants, rounds)})
    bytes_of = {"float": network.memory(), "native": integer.memory()}
    finish({**CPU, "backbone": VIT, "memory_bytes": bytes_of, "networks": found}, output)


class Overruled(nn.Module):
    """Runs a predictor, and lets a share of the samples leave and the others go on at one width."""

    def __init__(self, predictor: nn.Module, onward: int, leaving: float) -> None:
        super().__init__()
        self.predictor, self.onward, self.leaving = predictor, onward, leaving

    def forward(self, known: Any) -> Tensor:
        errors = torch.ones_like(self.predictor(known))
        errors[:, self.onward] = 0
        errors[: round(len(errors) * self.leaving), 0] = -1
        return errors


def overruled(network: QuantizedNetwork, width: int) -> QuantizedNetwork:
    """The same network, sharing its weights: a third leaves at the first exit, half of the others at the second."""
    tree, predictors = network.tree, []
    for node, predictor in enumerate(network.predictors):
        onward = tree.reachable(node).index(tree.index.get((*tree.nodes[node], width), node))
        predictors.append(Overruled(predictor, onward, 1 / 3 if tree.exit(node) == 0 else 1 / 2))
    gate = ErrorGate(tree, network.backbone.feature_dims, network.backbone.num_classes)
    gate.predictors = nn.ModuleList(predictors)
    return network.with_gate(gate)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli({"layers": layers, "networks": networks})
