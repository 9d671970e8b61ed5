"""Methods of training exits on one backbone, each at its own step size: the digits' configurations, in one process.

    eenet fit --config configs/digits/vit_backbone.yaml
    python benchmarks/rivals.py --rows runs/rivals.jsonl
    python benchmarks/rivals.py --rows runs/rivals.jsonl --table

It takes the losses, phases, schedules, batch size and epochs of `configs/digits/vit_*.yaml`, with exits after every
stage, and no Lightning, whose steps cost more than these exits'. The validation split alone chooses: step sizes by the
mean accuracy of the early exits, operating points by their budget. Test samples are really routed. A row is written for
each run and not made again.
"""

import argparse
import copy
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.api.opening import Run, open_run
from eenet.backbones.base import select
from eenet.calibration import Scored
from eenet.calibration.ensemble import fit_ensemble
from eenet.calibration.search import within_budget
from eenet.cli.sweep_choice import Option, choose
from eenet.connections import PastFuture, ZeroTimeWaste
from eenet.errors import UnmetError
from eenet.gates import ConfidenceGate, UncertaintyGate
from eenet.metrics import sample_statistics
from eenet.metrics.statistics import summarise
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.objectives import DeepSupervision, SelfDistillation, Supervision, positive_weights
from eenet.policies import Policy, SequentialGates, Threshold
from lightning_modules import JointExits

BUDGETS = [0.25, 0.5, 0.75]
EPOCHS, BATCH, FINAL = 30, 32, 2e-4
RATES = [0.05, 0.2, 0.5]
"""The shipped one first: it stays unless another is better by more than the spread."""

METHODS: dict[str, dict[str, Any]] = {
    "decoupled": {},
    "deep_supervision": {"supervision": DeepSupervision("linear")},
    "self_distillation": {"supervision": SelfDistillation()},
    "boosted": {"boosted": True},
    "zero_time_waste": {"connection": ZeroTimeWaste},
    "cascade": {"connection": lambda gates, classes: ZeroTimeWaste(gates, classes, ensemble=False)},
    "past_future": {"connection": PastFuture},
    "jei_dnn": {},
    "decoupled_gates": {},
}
MIXED = {"rates": [0.001, 0.0003], "epochs": 15, "final": 1e-5}


def sgd(parameters: Any, rate: float) -> torch.optim.Optimizer:
    """As the configurations."""
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)


def shuffled(samples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of an epoch."""
    yield from torch.randperm(samples, generator=generator).split(BATCH)


def train_exits(
    network: EarlyExitNetwork, known: tuple[ExitFeatures, Tensor], rate: float, seed: int, supervision: Supervision
) -> None:
    """As `DecoupledExits` on a frozen backbone, and the ensemble where the connection has one."""
    extracted, labels = known
    optimizer = sgd([*network.inference_modules.parameters(), *network.connection.parameters()], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, FINAL)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in shuffled(len(labels), generator):
            logits, extra = network.connected(select(extracted, rows))
            loss = supervision.loss(logits[:, :-1], labels[rows], logits[:, -1]) + extra
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    ensemble = getattr(network.connection, "ensemble", None)
    if ensemble is not None:
        with torch.no_grad():
            fit_ensemble(ensemble, network.exit_logits(extracted)[:, :-1].log_softmax(-1), labels)


def train_jointly(
    network: EarlyExitNetwork, known: dict[str, tuple[ExitFeatures, Tensor]], rate: float, seed: int, joint: bool
) -> None:
    """As `JointExits`, whose losses, targets and phases it takes."""
    (train, labels), (val, truth) = known["train"], known["val"]
    routine = JointExits(network, tradeoff=0.003, warmup_epochs=15, phase_batches=40, rescale=False, joint=joint)
    modules = list(network.inference_modules)
    optimizer = sgd([*network.inference_modules.parameters(), *network.gate.parameters()], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, FINAL)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        if routine.warming_up:
            routine.warming_up = epoch < routine.warmup_epochs and not all(routine.early_stopping.stopped)
            routine.early_stopping.restore(modules, stopped_only=routine.warming_up)
            if not routine.warming_up:
                optimizer.state.clear()
        for rows in shuffled(len(labels), generator):
            phase = routine.phase
            optimizer.zero_grad()
            routine.phase_loss(phase, select(train, rows), labels[rows]).backward()
            routine.joint_batches += phase != "warmup"
            routine.on_before_optimizer_step(optimizer)
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            logits = network.exit_logits(val)
            targets = routine.targets(logits, truth)
        routine.positive_weight.copy_(positive_weights(targets.sum(0), len(targets)))
        if routine.warming_up:
            right = (logits[:, :-1].argmax(-1) == truth.unsqueeze(1)).double().mean(0).tolist()
            routine.early_stopping.update(modules, right, epoch)
            routine.early_stopping.end_epoch(epoch)


def train_mixed(network: EarlyExitNetwork, images: tuple[Tensor, Tensor], rate: float, seed: int) -> None:
    """As `DecoupledExits` with a backbone that trains."""
    network.backbone.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MIXED["epochs"], MIXED["final"])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(MIXED["epochs"]):
        network.train()
        for rows in shuffled(len(images[1]), generator):
            logits, extra = network.connected(network.extract(images[0][rows]))
            optimizer.zero_grad()
            (DeepSupervision().loss(logits, images[1][rows], logits[:, -1]) + extra).backward()
            optimizer.step()
        schedule.step()
    network.eval()


@torch.no_grad()
def judged(network: EarlyExitNetwork, own: Policy, images: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Accuracies of early exits on validation, and points by budget, routed on the test split."""
    val, test = images["val"], images["test"]
    outputs = network(val[0])
    predictions = outputs.logits.argmax(-1)
    correct = predictions == val[1].unsqueeze(1)
    scored = Scored(predictions, outputs.scores, correct, network.costs.fractions())
    found: dict[str, Any] = {"val": correct[:, :-1].double().mean().item(), "points": {}}
    found["exits"] = (network(test[0]).logits.argmax(-1) == test[1].unsqueeze(1)).double().mean(0).tolist()
    for budget in BUDGETS:
        try:
            policy = within_budget(own, scored, budget, "budget", False)
        except UnmetError:
            continue
        routed = network.route(test[0], policy)
        figures = summarise(sample_statistics(routed.logits, test[1]))
        cost = routed.macs.double().mean().item() / network.costs.columns["macs"].full
        found["points"][str(budget)] = {key: figures[key] for key in ("accuracy", "nll", "ece")} | {"cost": cost}
    return found


def make(run: Run, method: str, rate: float, seed: int, images: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Train and judge one run."""
    torch.manual_seed(seed)
    options = {key: value for key, value in METHODS.get(method, {}).items() if key != "supervision"}
    gated = method in ("jei_dnn", "decoupled_gates")
    backbone = copy.deepcopy(run.model.network.backbone).requires_grad_(False)
    network = EarlyExitNetwork(backbone, "all", gate=UncertaintyGate if gated else ConfidenceGate, **options).eval()
    own: Policy = SequentialGates() if gated else Threshold([0.0] * (network.num_exits - 1))
    if method.startswith("mixed"):
        train_mixed(network, images["train"], rate, seed)
    else:
        with torch.no_grad():
            known = {name: (network.extract(x), y) for name, (x, y) in images.items() if name != "test"}
        if gated:
            train_jointly(network, known, rate, seed, joint=method == "jei_dnn")
        else:
            train_exits(network, known["train"], rate, seed, METHODS[method].get("supervision") or DeepSupervision())
    return judged(network, own, images)


def rows_of(path: Path) -> dict[tuple[str, float, int], dict[str, Any]]:
    """The rows that are there, by method, step size and seed."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {(row["method"], row["rate"], row["seed"]): row for row in map(json.loads, lines)}


def tables(rows: dict[tuple[str, float, int], dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: step sizes on validation, then the chosen ones' points on test."""
    by: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for (method, rate, _), row in rows.items():
        by[method][rate].append(row)

    def figure(values: list[float], digits: int = 2, scale: float = 100) -> str:
        mean = f"{scale * statistics.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"

    chosen: dict[str, float] = {}
    yield "| method | validation accuracy of the early exits in %, by step size (seeds) | chosen |\n| --- | --- | --- |"
    for method, rates in by.items():
        options = {rate: Option({}, tuple(row["val"] for row in found)) for rate, found in rates.items()}
        best = choose(options.values(), "val/accuracy")
        chosen[method] = next(rate for rate, option in options.items() if option is best)
        tried = ", ".join(f"{rate:g}: {figure(list(o.found))} ({len(o.found)})" for rate, o in options.items())
        yield f"| {method} | {tried} | {chosen[method]:g} |"
    yield ""
    heads: Callable[[str], str] = lambda key: " | ".join(f"{key} at {budget:g}" for budget in BUDGETS)  # noqa: E731
    yield (
        f"| method (seeds) | {heads('accuracy %')} | {heads('NLL')} | cost at {BUDGETS[0]:g} |\n| --- |" + " --- |" * 7
    )
    for method, rate in chosen.items():
        found = by[method][rate]
        points = [[row["points"].get(str(budget)) for row in found] for budget in BUDGETS]
        accuracies = [figure([p["accuracy"] for p in at]) if all(at) else "not met" for at in points]
        losses = [figure([p["nll"] for p in at], 3, 1) if all(at) else "" for at in points]
        cost = figure([p["cost"] for p in points[0]], 3, 1) if all(points[0]) else ""
        yield f"| {method} ({len(found)}) | {' | '.join(accuracies)} | {' | '.join(losses)} | {cost} |"


def main() -> None:
    """Make the rows that are missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="runs/digits_vit_backbone")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--methods", default=",".join([*METHODS, "mixed"]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(*tables(rows_of(options.rows)), sep="\n")
        return
    run = open_run(options.backbone)
    images = {}
    for split in ("train", "val", "test"):
        inputs, labels = zip(*run.batches(split), strict=True)
        images[split] = torch.cat(inputs), torch.cat(labels)
    for method in options.methods.split(","):
        for rate in MIXED["rates"] if method == "mixed" else RATES:
            for seed in range(options.seeds):
                if (method, rate, seed) not in rows_of(options.rows):
                    row = {"method": method, "rate": rate, "seed": seed, **make(run, method, rate, seed, images)}
                    with options.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
