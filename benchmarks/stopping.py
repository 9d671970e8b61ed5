"""Optimal stopping against thresholds and learned gates, on finished runs that keep their features on disk.

    python benchmarks/stopping.py --runs runs/study/vit/decoupled/seed=? --rows stopping.jsonl
    python benchmarks/stopping.py --rows stopping.jsonl --table
    python benchmarks/stopping.py --rows stopping.jsonl --speed

Points are chosen on the validation split and judged on the test split, whose logits come from stored features; routing
gives the same (a test). A row is written for each run and policy and not made again.
"""

import argparse
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from datamodules.features import FeatureLoaders
from eenet.api.opening import Run, open_run
from eenet.backbones import CifarResNet
from eenet.calibration import Scored, policy_for_budget
from eenet.calibration.candidates import STOPPING, Split, stopping_gate
from eenet.calibration.chooser import Chooser
from eenet.calibration.conformal import coverage, prediction_sets, set_size
from eenet.calibration.stopping import find_judge, fit_stopping, leaving_losses
from eenet.calibration.wishes import Wishes, grant
from eenet.features import feature_options
from eenet.gates import ConfidenceGate, StoppingGate, UncertaintyGate, confidence
from eenet.inference_modules import MLPHead
from eenet.metrics import sample_statistics
from eenet.metrics.statistics import summarise
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, SequentialGates, Threshold
from eenet.reporting import gather_exits

BUDGETS = [0.15, 0.2, 0.25, 0.35, 0.5]
ALPHA = 0.05  # share of test samples that conformal sets may miss
POLICIES = [
    "max_probability",
    "cut",
    "entropy",
    "margin",
    "geometric",
    "per_class",
    "random",
    "own",
    *STOPPING,
    "clairvoyant",
]


@torch.no_grad()
def read(run: Run, split: str) -> tuple[Tensor, Tensor]:
    """All exits' logits, `(samples, exits, classes)`, and labels of a split."""
    table = FeatureLoaders(run.data, run.model.network, feature_options("disk")).table(split)  # type: ignore[arg-type]
    batches = [table[rows] for rows in torch.arange(len(table)).split(4096)]
    logits = torch.cat([run.model.network.exit_logits(extracted) for extracted, _ in batches])
    return logits, torch.cat([labels for _, labels in batches])


def judge(logits: Tensor, labels: Tensor, exits: Tensor, fractions: Tensor) -> dict[str, float]:
    """Figures of samples that leave at some exits with some answers."""
    rows = gather_exits(sample_statistics(logits, labels), exits)
    found = summarise(rows)
    return {key: found[key] for key in ("accuracy", "nll", "ece")} | {"cost": fractions[exits].mean().item()}


def clairvoyant(logits: Tensor, judge: int, fractions: Tensor, tradeoff: float) -> Tensor:
    """The exits of least loss of leaving plus priced cost, of a router that sees all logits and no label."""
    return (leaving_losses(logits, judge) + tradeoff * fractions).argmin(1)


def rows_of(folder: Path, policies: list[str], done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """A row for each policy of a run that has none yet."""
    run = open_run(str(folder))
    network, own = run.model.network, next(iter(run.model.policies().values()))
    names = [name for name in policies if name != "own" or run.model.method == "jei_dnn"]
    names = [name for name in names if (str(folder), name) not in done]
    if not names:
        return
    train, val, test = (read(run, split) for split in ("train", "val", "test"))
    split, wishes = Split(*val, training=train[0]), Wishes({"budget": BUDGETS}, alphas=[ALPHA], modes=("common",))
    for name in names:
        row: dict[str, Any] = {"run": str(folder), "policy": name, "points": {}}
        start = time.process_time()
        if name == "clairvoyant":
            fractions = network.costs.fractions()
            judging = find_judge(val[0].argmax(-1) == val[1].unsqueeze(1))
            for budget in BUDGETS:
                prices = torch.logspace(-4, 1, 100).tolist()
                kept = [p for p in prices if fractions[clairvoyant(val[0], judging, fractions, p)].mean() <= budget]
                if kept:
                    row["points"][budget] = judge(*test, clairvoyant(test[0], judging, fractions, min(kept)), fractions)
            yield row
            continue
        if name == "cut":
            row["points"] = cut_thresholds(val, test, network.costs.fractions())
            yield row
            continue
        chooser = Chooser(network, own, name, wishes, split, run.chosen_on(len(val[1])))  # type: ignore[arg-type]
        for point in grant(name, wishes, chooser.point).points.values():
            gate = point.network(network).gate
            early = test[0][:, :-1]
            with torch.no_grad():
                scores, answers = gate(early), torch.cat([gate.answers(early), test[0][:, -1:]], dim=1)
            exits = point.policy.exits(answers.argmax(-1), scores)
            fractions = point.network(network).costs.fractions()
            sets = prediction_sets(
                gather_exits(answers.softmax(-1), exits), exits, point.conformal["common", ALPHA].values
            )
            sized = {"set_size": set_size(sets).item(), "coverage": coverage(sets, test[1]).item()}
            row["points"][point.asked["budget"]] = judge(answers, test[1], exits, fractions) | sized
        row["seconds"] = time.process_time() - start
        if name == "stopping":
            start = time.process_time()
            fit_stopping(stopping_gate(network, name), train[0], network.costs.fractions())  # type: ignore[arg-type]
            row |= {"fit_seconds": time.process_time() - start, "fit_samples": len(train[0])}
        yield row


def cut_thresholds(
    val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], fractions: Tensor
) -> dict[float, dict[str, float]]:
    """Thresholds of the maximum probability on the network cut at the exit that is most accurate on validation."""
    correct = val[0].argmax(-1) == val[1].unsqueeze(1)
    exits, found = find_judge(correct) + 1, {}
    scores = [confidence(logits[:, : exits - 1]) for logits, _ in (val, test)]
    scored = Scored(val[0].argmax(-1)[:, :exits], scores[0], correct[:, :exits], fractions[:exits])
    for budget in (budget for budget in BUDGETS if budget >= fractions[0]):
        policy = policy_for_budget(Threshold([0.0] * (exits - 1)), scored, budget)
        chosen = policy.exits(test[0].argmax(-1)[:, :exits], scores[1])
        found[budget] = judge(test[0][:, :exits], test[1], chosen, fractions[:exits])
    return found


@torch.no_grad()
def speed(rounds: int = 400) -> Iterator[str]:
    """Processor time of routing one sample through all exits of a ResNet-14, paired with JEI-DNN's gates."""
    network = EarlyExitNetwork(
        CifarResNet(14, 10, 28, 1), inference_module=lambda dim, classes: MLPHead(dim, classes, 64)
    )
    gates = network.num_exits - 1
    contenders: dict[str, tuple[Any, Policy]] = {"jei_dnn": (UncertaintyGate(gates), SequentialGates(-1e3))}
    nobody = Threshold([float("inf")] * gates)
    contenders["max_probability"] = ConfidenceGate(gates), nobody
    contenders |= {name: (StoppingGate(gates, 10, **options), nobody) for name, options in STOPPING.items()}
    image, times = torch.randn(1, 1, 28, 28), defaultdict(list)
    networks = {name: (network.with_gate(gate).eval(), policy) for name, (gate, policy) in contenders.items()}
    for _ in range(rounds):
        for name, (routed, policy) in networks.items():
            start = time.process_time()
            assert routed.route(image, policy).exits.item() == gates
            times[name].append(time.process_time() - start)
    for name, found in times.items():
        ratios = sorted(own / other for own, other in zip(found, times["jei_dnn"], strict=True))
        quartiles = ", ".join(f"{ratios[len(ratios) * part // 4]:.3f}" for part in (1, 2, 3))
        yield f"{name}: {1e3 * statistics.median(found):.2f} ms; against jei_dnn, quartiles {quartiles}"


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Figures of every method and policy over its seeds, and differences from the best threshold, paired over seeds."""
    groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        method, seed = re.split(r"[_,/]seed=?(?=\d+$)", row["run"])
        groups[method][row["policy"]][seed] = row["points"]
    for method, policies in groups.items():
        asked = [budget for budget in BUDGETS if any(str(budget) in p for s in policies.values() for p in s.values())]
        heads = [f"at {budget:g}" for budget in asked]
        heads += [f"{name} at {budget:g}" for name in ("NLL", "ECE %", "set size") for budget in (0.25, 0.5)]
        yield f"\n{method}\n"
        yield "| policy | " + " | ".join(heads) + " |"
        yield "| --- |" + " --- |" * len(heads)
        for name, seeds in policies.items():
            cells = [accuracy(seeds.values(), budget) for budget in asked]
            for key, form in (("nll", "{:.3f}"), ("ece", "{:.2%}"), ("set_size", "{:.2f}")):
                cells += [mean(seeds.values(), budget, key, form).rstrip("%") for budget in (0.25, 0.5)]
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""
        for rival in ("max_probability", "cut", "entropy", "margin", "own"):
            for name in STOPPING:
                if rival in policies and name in policies:
                    yield f"{name} less {rival}: " + "; ".join(difference(policies, name, rival, b) for b in asked)


def accuracy(seeds: Iterable[dict[str, Any]], budget: float) -> str:
    """Mean and standard deviation over seeds of the accuracy in %, and the cost where it is not the budget."""
    points = [points[str(budget)] for points in seeds if str(budget) in points]
    if not points:
        return "cannot be met"
    found = [100 * point["accuracy"] for point in points]
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    cost = statistics.mean(point["cost"] for point in points)
    return f"{statistics.mean(found):.2f}{spread}" + (f" (costs {cost:.2f})" if abs(cost - budget) > 0.01 else "")


def mean(seeds: Iterable[dict[str, Any]], budget: float, key: str, form: str) -> str:
    """Mean over seeds of another figure, empty where it was not measured."""
    found = [points[str(budget)][key] for points in seeds if key in points.get(str(budget), {})]
    return form.format(statistics.mean(found)) if found else ""


def difference(policies: dict[str, dict[str, Any]], name: str, rival: str, budget: float) -> str:
    """Points of accuracy and NLL between two policies, with the 95 % interval of the mean over seeds."""
    said, both = [], (policies[name], policies[rival])
    seeds = [seed for seed in both[0] if all(str(budget) in policy.get(seed, {}) for policy in both)]
    if len(seeds) < 2:
        return f"{budget:g}: no pairs"
    for key, scale in (("accuracy", 100), ("nll", 1)):
        values = [
            scale * (policies[name][seed][str(budget)][key] - policies[rival][seed][str(budget)][key]) for seed in seeds
        ]
        half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
        said.append(f"{key} {statistics.mean(values):+.3f} ± {half:.3f}")
    return f"{budget:g}: {', '.join(said)}"


def main() -> None:
    """Make the rows that are missing, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", default=[], type=Path)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.is_file() else []
    done = {(row["run"], row["policy"]) for row in rows}
    for folder in options.runs:
        for row in rows_of(folder, options.policies.split(","), done):
            with options.rows.open("a") as file:
                print(json.dumps(row), file=file, flush=True)
    if options.speed:
        print("\n".join(speed()))
    if options.table:
        print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()
