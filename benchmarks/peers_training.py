"""What a budget gives in earlyon and here, and what an epoch of JEI-DNN takes through the backbone and without it.

    pip install earlyon==0.3.0 && python benchmarks/peers_training.py

Budgets: scikit-learn's digits under Gaussian noise, a small convolutional network, two exits with each library's own
heads, trained by one loop; points are chosen on validation samples. What a test sample truly costs is counted by torch
while it is routed alone. Epochs: the transformer of `configs/digits` with random weights, in processor time, by a plain
loop that runs the frozen backbone on each batch, as that of the JEI-DNN authors does, and by `eenet.train`.
"""

import copy
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from earlyon.core.thresholds import calibrate_thresholds_for_budget
from earlyon.models import custom_ee
from jsonargparse import auto_cli
from report import finish
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torch.utils.flop_counter import FlopCounterMode

import eenet
from eenet.backbones import ViT
from eenet.gates import ConfidenceGate, UncertaintyGate
from lightning_modules import JointExits

PLACES = ["stage1", "stage2"]
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)


def stage(channels: int, width: int, stride: int) -> nn.Sequential:
    layers = [nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())


def fit(parameters: Iterable[nn.Parameter], outputs: Any, loader: DataLoader, epochs: int) -> None:
    """Minimise the sum of the cross-entropies of all outputs."""
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(epochs):
        for images, labels in loader:
            loss = sum(nn.functional.cross_entropy(logits, labels) for logits in outputs(images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def flops(run: Any, images: Tensor) -> float:
    """Mean per image, each alone."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for image in images.split(1):
            run(image)
    return counter.get_total_flops() / len(images)


def budgets(noise: float, asked: float, seed: int) -> list[dict[str, Any]]:
    """What was asked, what the library says of the validation samples, and what the test samples truly cost."""
    torch.manual_seed(seed)
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    images += noise * torch.randn_like(images)
    parts = random_split(TensorDataset(images, labels), [1200, 297, 300])
    train, val, test = (DataLoader(part, 64, shuffle=part is parts[0]) for part in parts)
    stages = {"stage1": stage(1, 16, 1), "stage2": stage(16, 32, 2), "stage3": stage(32, 64, 2)}
    rest = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(64, 10)}
    model = nn.Sequential(OrderedDict(stages | rest))
    fit(model.parameters(), lambda inputs: [model(inputs)], train, 20)
    model.eval().requires_grad_(False)
    inputs, truth = (torch.stack(column) for column in zip(*parts[2], strict=True))
    full = flops(model, inputs)

    theirs = custom_ee(copy.deepcopy(model), exit_layers=PLACES, num_classes=10, input_shape=(1, 1, 8, 8))
    heads = [weight for name, weight in theirs.named_parameters() if not name.startswith("backbone")]
    fit([weight.requires_grad_() for weight in heads], lambda x: theirs(x, mode="training")[:-1], train, 20)
    theirs.eval()
    found = calibrate_thresholds_for_budget(theirs, val, asked)
    answers = [theirs(image, mode="inference") for image in inputs.split(1)]
    right = torch.cat([answer.prediction for answer in answers]).argmax(-1) == truth
    rows = [
        {
            "name": "earlyon",
            "said": found.avg_computation_used,
            "met": found.budget_met,
            "true": flops(partial(theirs, mode="inference"), inputs) / full,
            "accuracy": right.double().mean().item(),
        }
    ]
    network = eenet.attach(model, images[:4], exits=PLACES, gate=ConfidenceGate)
    with tempfile.TemporaryDirectory() as folder:
        data = eenet.data.OwnData(train=train, val=val, test=test, name="noisy digits")
        run = eenet.train(network, data, "decoupled", run=f"{folder}/run", epochs=20, seed=seed)
        chosen = eenet.calibrate(run, budget=[asked])
        row = {"name": "eenet", "refused": [error.problem for error in chosen.unmet]}
        for name, point in chosen.points.items():
            eenet.evaluate(run, name)
            results = run.model.results["operating_points"]
            reached = next(result for result in results if result["name"] == name)
            row |= {"said": point.got["macs_fraction"], "accuracy": reached["accuracy"]}
            row["true"] = flops(partial(network.eval().route, policy=point.policy), inputs) / full
    return [*rows, row]


def loop(routine: JointExits, loader: DataLoader, epochs: int, phase_batches: int = 40) -> None:
    """Phases that take turns, the whole backbone run on each batch."""
    parts = routine.network.inference_modules, routine.network.gate
    optimizer, number = SGD([{"params": list(part.parameters())} for part in parts]), 0
    for _ in range(epochs):
        for images, labels in loader:
            with torch.no_grad():
                extracted = routine.network.extract(images)
            phase = "inference_modules" if number // phase_batches % 2 else "gates"
            loss, number = routine.phase_loss(phase, extracted, labels), number + 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def epochs(few: int, many: int) -> dict[str, float]:
    """Seconds per epoch, the difference of two trainings; `once` is what the shorter takes beyond its epochs."""
    shape = {"patch_size": 2, "embed_dim": 64, "depth": 6, "num_heads": 4, "global_pool": "avg"}
    data, found = eenet.data.Digits(batch_size=32), dict[str, float]()

    def network() -> eenet.EarlyExitNetwork:
        backbone = ViT("vit_tiny_patch16_224", num_classes=10, image_size=8, in_channels=1, overrides=shape)
        return eenet.EarlyExitNetwork(backbone.eval().requires_grad_(False), exits=[1, 3], gate=UncertaintyGate)

    def seconds(features: str | None, count: int) -> float:
        torch.manual_seed(0)
        start = time.process_time()
        if features is None:
            loop(JointExits(network(), optimizer=SGD), data.loader("train"), count)
        else:
            with tempfile.TemporaryDirectory() as folder:
                options = {"features": features, "warmup_epochs": 0, "phase_batches": 40, "optimizer": SGD}
                eenet.train(network(), data, "jei_dnn", run=f"{folder}/run", epochs=count, **options)
        return time.process_time() - start

    seconds(None, 1)
    for name, features in {
        "plain loop": None,
        "eenet, features: off": "off",
        "eenet, features: memory": "memory",
    }.items():
        short, long = seconds(features, few), seconds(features, many)
        found[name] = (long - short) / (many - few)
        found[f"{name}, once"] = short - few * found[name]
    return found


def main(
    noises: list[float] = [0.1, 0.2, 0.3],  # noqa: B006
    asked: float = 0.5,
    seeds: int = 2,
    few: int = 1,
    many: int = 6,
    output: Path | None = None,
) -> None:
    """Measure.

    Args:
        noises: Deviations of the noise, of pixels in 0 to 1.
        asked: Share of the full network's operations.
        seeds: Of noise, splits and weights.
        few: Epochs of the shorter training.
        many: Epochs of the longer one.
        output: JSON file.
    """
    torch.set_num_threads(1)
    rows = [
        {"noise": noise, "seed": seed, **row}
        for noise in noises
        for seed in range(seeds)
        for row in budgets(noise, asked, seed)
    ]
    finish({"asked": asked, "budgets": rows, "seconds per epoch": epochs(few, many)}, output)


if __name__ == "__main__":
    auto_cli(main)
