"""What the clock shows of routed networks.

    python benchmarks/runtime.py speed              # realised against theoretical speed-up near 60 % of the MACs
    python benchmarks/runtime.py speed --compile true
    python benchmarks/runtime.py onnx               # the same against the full network, all on ONNX Runtime
    python benchmarks/runtime.py onnx --compile true    # beside what torch compiles

Prints JSON; `--output` writes it, too. Weights are random but for MiniLM's backbone: what is timed depends on where
samples leave, not on whether they are right. Thresholds are set on validation samples, test samples are timed. For
trained networks there is `eenet bench`.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from report import finish
from torch import Tensor
from torch.utils import _pytree as pytree

from datamodules import BBCNews, FashionMNIST, SplitData
from eenet.api.opening import drawn, full_batches
from eenet.backbones import Bert, CifarResNet, StagedBackbone, ViT
from eenet.exporting.contenders import onnx_contenders
from eenet.gates import ConfidenceGate, Gate, UncertaintyGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold
from eenet.runtime import Routed
from eenet.runtime.contenders import Contender, device_name, full_network, nobody_leaves, race, routed_network

CPU = torch.device("cpu")


def make_vit(**overrides: Any) -> ViT:
    return ViT("vit_tiny_patch16_224", 10, 28, 1, overrides=overrides)


BACKBONES: dict[str, Callable[[], StagedBackbone]] = {
    "vit_8x128_17_tokens": lambda: make_vit(patch_size=7, embed_dim=128, depth=8, num_heads=4, global_pool="avg"),
    "vit_tiny_12x192_50_tokens": lambda: make_vit(patch_size=4, embed_dim=192, depth=12, num_heads=3),
    "cifar_resnet_14": lambda: CifarResNet(14, 10, 28, 1),
    "minilm_6x384_128_tokens": lambda: Bert(5, pretrained="minilm", pooling="mean"),
}


def batched(data: SplitData, rows: Any, size: int) -> list[Any]:
    """Inputs of samples, in full batches."""
    return [inputs for inputs, _ in full_batches(data, rows, size)]


def prepare(
    name: str, budget: float, exits: Any = "all", gate: Callable[[int], Gate] = UncertaintyGate
) -> tuple[EarlyExitNetwork, Threshold, SplitData]:
    """A network with exits after every block, thresholds that cost about the budget, and the data."""
    torch.manual_seed(0)
    data = BBCNews(max_length=128) if name.startswith("minilm") else FashionMNIST(augment=False)
    data.prepare_data()
    backbone = BACKBONES[name]()
    exits = list(range(1, backbone.num_stages - 1, 2)) if exits == "second" else exits
    network = EarlyExitNetwork(backbone, exits, gate=gate).eval()
    return network, thresholds_near(network, data, budget), data


@torch.no_grad()
def thresholds_near(network: EarlyExitNetwork, data: SplitData, budget: float, batches: int = 4) -> Threshold:
    """Thresholds that let the same share of those still there leave at every exit, so large that the budget is kept."""
    scores = torch.cat([network(inputs).scores for inputs, _ in islice(data.loader("val"), batches)])
    fractions, predictions = network.costs.fractions(), torch.zeros(len(scores), network.num_exits)
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        policy = Threshold(equal_shares(scores, share))
        dear = fractions[policy.exits(predictions, scores)].mean() > budget
        low, high = (share, high) if dear else (low, share)
    return policy


def equal_shares(scores: Tensor, share: float) -> list[float]:
    limits: list[float] = []
    present = torch.ones(len(scores), dtype=torch.bool)
    for column in scores.unbind(1):
        limits.append(column[present].quantile(1 - share).item() if present.any() else float("inf"))
        present &= column < limits[-1]
    return limits


def plain_loop(network: EarlyExitNetwork, policy: Threshold, costs: Tensor, inputs: Any) -> Routed:
    """What anybody would write first, for exits after every block: index, and continue with those that stay."""
    backbone, thresholds = network.backbone, policy.arguments()["thresholds"]
    batch, last = len(pytree.tree_leaves(inputs)[0]), network.num_exits - 1
    logits, exits, rows = torch.empty(batch, backbone.num_classes), torch.full((batch,), last), torch.arange(batch)
    state = backbone.embed(inputs)
    for stage in range(last):
        state = backbone.run_stage(stage, state)
        found, _ = network.logits_at(stage, network.read(stage, state), ())
        leave = network.gate.at(stage, found)[0] >= float(thresholds[stage])
        if leave.any():
            logits[rows[leave]], exits[rows[leave]] = found[leave], stage
            rows = rows[~leave]
            if not len(rows):
                break
            state = pytree.tree_map(lambda values, stay=~leave: values[stay], state)
    if len(rows):
        logits[rows] = backbone.classify(backbone.run_stage(last, state))
    return Routed(logits, exits, costs[exits], exits)


def speed(
    networks: list[str] | None = None,
    batches: list[int] | None = None,
    budget: float = 0.6,
    samples: int = 256,
    rounds: int = 7,
    compile: bool = False,
    output: Path | None = None,
) -> None:
    """Realised and theoretical speed-up near a budget, and the overhead when nobody leaves, beside the plain loop's.

    Args:
        networks: Of the benchmark's networks, all by default.
        batches: Batch sizes, 1, 32 and 256 by default.
        budget: Mean MACs that thresholds are set for, as a fraction of the full network's.
        samples: Test samples of a round.
        rounds: Interleaved rounds.
        compile: Compile the full and the routed network; the plain loop stays eager.
        output: JSON file.
    """
    found = {}
    for name in networks or BACKBONES:
        network, policy, data = prepare(name, budget)
        rows = drawn(data, "test", samples)
        contenders = speed_contenders(network, policy, compile)
        found[name] = {
            f"batch_{size}": race(contenders, batched(data, rows, size), size, rounds, CPU)
            for size in batches or [1, 32, 256]
        }
    conditions = {"device": device_name(CPU), "compiled": compile, "budget": budget, "rounds": rounds}
    finish({**conditions, "samples": samples, "networks": found}, output)


def onnx(
    networks: list[str] | None = None,
    exits: list[int] | None = None,
    batches: list[int] | None = None,
    budget: float = 0.6,
    samples: int = 256,
    rounds: int = 15,
    in_a_row: int = 1,
    compile: bool = False,
    output: Path | None = None,
) -> None:
    """One routed ONNX file against the full network, both on ONNX Runtime, each in the parts of a batch that suit it.

    Args:
        networks: Of the benchmark's networks, the ViT-8 and the ResNet-14 by default.
        exits: Stages after which an exit reads; every second by default.
        batches: As for `speed`.
        budget: As for `speed`.
        samples: Test samples of a round.
        rounds: Interleaved rounds.
        in_a_row: Batches of a turn: with 1 everyone's weights are driven from the caches by the others'.
        compile: Time the full and the routed network as torch compiles them, too.
        output: JSON file.
    """
    found = {}
    for name in networks or ["vit_8x128_17_tokens", "cifar_resnet_14"]:
        network, policy, data = prepare(name, budget, exits or "second", ConfidenceGate)
        rows = drawn(data, "test", samples)
        example = pytree.tree_map(lambda inputs: inputs[:3], batched(data, rows, 3)[0])
        if isinstance(example, dict):
            example["attention_mask"] = torch.ones_like(example["attention_mask"])
        contenders = onnx_contenders(network, {"one file": (network, policy)}, example)
        if compile:
            contenders += [replace(full_network(network, True), name="full network, torch", kind="static")]
            contenders += [routed_network("torch", network, policy, True)]
        found[name] = {"exits": network.exit_stages}
        for size in batches or [1, 32, 256]:
            timed = race(contenders, batched(data, rows, size), size, rounds, CPU, in_a_row)
            parts = [getattr(one.run, "length", size) for one in contenders]
            found[name][f"batch_{size}"] = [{**row, "part": part} for row, part in zip(timed, parts, strict=True)]
    conditions = {"device": device_name(CPU), "budget": budget, "rounds": rounds, "samples": samples}
    conditions["in_a_row"] = in_a_row
    finish({**conditions, "onnxruntime": version("onnxruntime"), "networks": found}, output)


def speed_contenders(network: EarlyExitNetwork, policy: Threshold, compile: bool) -> list[Contender]:
    never = Threshold([float("inf")] * (network.num_exits - 1))
    costs = torch.tensor(network.costs.cumulative)
    return [
        full_network(network, compile),
        routed_network("eenet", network, policy, compile),
        nobody_leaves(network, compile),
        Contender("plain loop", "routed", partial(plain_loop, network, policy, costs)),
        Contender("plain loop, nobody leaves", "overhead", partial(plain_loop, network, never, costs)),
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli({"speed": speed, "onnx": onnx})
