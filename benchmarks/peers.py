"""earlyon's runners and eenet's beside the network without exits.

    pip install earlyon==0.3.0 && python benchmarks/peers.py

torchvision's ResNet-18 at 64 pixels with random weights, exits behind `layer2` and `layer3`, both libraries around
copies of one network. Each has thresholds, on images of their own, by which half of the images leave at the first exit,
half of the others at the second. Contenders take turns; a figure is the median over rounds of the full network's time
divided by the contender's, in processor time.
"""

import copy
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from earlyon.models import custom_ee
from earlyon.staged import staged_model
from jsonargparse import auto_cli
from report import finish
from torch import Tensor, nn
from torchvision.models import resnet18

import eenet
from eenet.exporting import export_network
from eenet.exporting.contenders import full_network
from eenet.gates import ConfidenceGate
from eenet.policies import Threshold
from eenet.runtime import EarlyExitRuntime

PLACES = ["layer2", "layer3"]


@torch.inference_mode()
def halves(first: Tensor, second: Tensor) -> list[float]:
    """Thresholds by which half of the samples leave at the first exit, and half of the others at the second."""
    low = first.median().item()
    return [low, second[first < low].median().item()]


def contenders(images: Tensor, batch: int, folder: Path) -> tuple[dict[str, Callable[[Tensor], Any]], dict[str, Any]]:
    """What runs a batch, by name, and the share of the images that leaves at each exit."""
    torch.manual_seed(0)
    parts = dict(resnet18(num_classes=10).named_children())
    model = nn.Sequential(OrderedDict(parts | {"flatten": nn.Flatten(), "fc": parts.pop("fc")})).eval()
    theirs = custom_ee(copy.deepcopy(model), exit_layers=PLACES, num_classes=10).eval()
    network = eenet.attach(model, images[:4], exits=PLACES, gate=ConfidenceGate).eval()
    with torch.inference_mode():
        early, late, _ = (logits.softmax(-1).amax(-1) for logits in theirs(images, mode="training"))
        theirs.config.confidence_thresholds = halves(early, late)
        scores = network(images).scores.unbind(1)
    policy = Threshold(halves(*scores))
    runtime = EarlyExitRuntime(network, policy)
    found: dict[str, Callable[[Tensor], Any]] = {"full network, torch": model, "eenet, torch": runtime}
    if batch == 1:
        found["earlyon, hooks"] = lambda inputs: theirs(inputs, mode="inference")
        found["earlyon, staged"] = staged_model(theirs).infer
    else:
        found["earlyon, batch"] = theirs.forward_inference_batched
    found["full network, ONNX Runtime"] = full_network(network, images[: max(batch, 3)])
    export_network(network, policy, folder / "shipped", images[:4], "onnx", one=True)
    found["eenet, one ONNX file"] = eenet.load(folder / "shipped")
    return found, {"eenet": runtime(images).exits.bincount(minlength=3).tolist()}


@torch.inference_mode()
def main(batches: list[int] = [1, 32], rounds: int = 9, images: int = 64, output: Path | None = None) -> None:  # noqa: B006
    """Measure.

    Args:
        batches: Sizes.
        rounds: Of all contenders, after one that does not count.
        images: Of a round.
        output: JSON file.
    """
    torch.set_num_threads(1)
    inputs = torch.randn(images, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    rows = []
    for batch in batches:
        with tempfile.TemporaryDirectory() as folder:
            found, leaving = contenders(inputs, batch, Path(folder))
            times: dict[str, list[float]] = {name: [] for name in found}
            for _ in range(rounds + 1):
                for name, run in found.items():
                    start = time.process_time()
                    for part in inputs.split(batch):
                        run(part)
                    times[name].append(time.process_time() - start)
        full, *_ = times.values()
        rows += [
            {
                "batch": batch,
                "name": name,
                "times as fast": statistics.median(a / b for a, b in zip(full[1:], own[1:], strict=True)),
                "ms per image": 1000 * statistics.median(own[1:]) / images,
            }
            for name, own in times.items()
        ]
    finish({"leaving": leaving, "rows": rows}, output)


if __name__ == "__main__":
    auto_cli(main)
