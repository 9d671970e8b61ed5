"""What int8 arithmetic takes by the clock, whole and routed, on ONNX Runtime.

    python benchmarks/integers.py --networks '[cifar_resnet_14]'

Prints JSON; `--output` writes it, too. Weights are random but for MiniLM's backbone: what is timed depends on where
samples leave, not on whether they are right. Thresholds of the float and of the int8 network are set each on its own
scores of validation samples, to the same mean MACs. One thread; contenders take turns on the same test samples, in
processor time, and a ratio is the median of the rounds' ratios to the full float network.
"""

import warnings
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import auto_cli
from report import finish
from runtime import BACKBONES, CPU, batched, prepare
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Subset

from datamodules import SplitData
from eenet.api.opening import drawn
from eenet.calibration.search import Scored, within_budget
from eenet.exporting import export_network
from eenet.exporting.contenders import full_network
from eenet.exporting.folder import choose_exits, onnx_steps
from eenet.exporting.integers import AllExits, Integers
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy
from eenet.runtime import load
from eenet.runtime.contenders import Contender, InParts, device_name, race
from eenet.runtime.onnx_program import make_session


def inputs_of(data: SplitData, split: str, samples: int) -> Any:
    """Inputs of samples of a split, drawn once."""
    dataset = data.dataset(split)  # type: ignore[arg-type]
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:samples].tolist()
    return next(iter(data.load(Subset(dataset, rows), batch_size=samples)))[0]


def chosen(network: EarlyExitNetwork, policy: Policy, logits: Tensor, budget: float) -> Policy:
    """A policy turned to the dearest setting within a budget by every exit's logits; labels have no part in it."""
    predictions, scores = logits.argmax(-1), network.gate(logits[:, :-1])
    right = torch.ones_like(predictions, dtype=torch.bool)
    scored = Scored(predictions, scores, right, network.costs.fractions())
    return within_budget(policy, scored, budget, "budget", dearest=True)


class Last:
    """The full int8 network: what the last exit alone needs of the graph of all exits."""

    def __init__(self, model: Any, exit: int) -> None:
        from eenet.exporting.one_graph import heads_of

        model = heads_of(model, [model.graph.output[exit].name])
        self.session = make_session(model.SerializeToString())
        self.names = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, inputs: Any) -> Tensor:
        tensors = pytree.tree_leaves(inputs)
        given = {name: tensors[int(name.removeprefix("input_"))].numpy() for name in self.names}
        return torch.from_numpy(self.session.run(None, given)[0])


@torch.no_grad()
def integers(
    networks: list[str] | None = None,
    exits: list[int] | None = None,
    batches: list[int] | None = None,
    budget: float = 0.6,
    samples: int = 256,
    calibrating: int = 256,
    rounds: int = 9,
    in_a_row: int = 1,
    output: Path | None = None,
) -> None:
    """Time the full network and the routed one, in floating point and in int8.

    Args:
        networks: Of `benchmarks/runtime.py`; its ViT-8, its ResNet-14 and MiniLM by default.
        exits: Stages after which an exit reads; every second by default.
        batches: Batch sizes, 1, 32 and 256 by default.
        budget: Mean MACs of both routed networks, as a fraction of the full network's.
        samples: Test samples of a round, and validation samples that thresholds are set on.
        calibrating: Training samples that ranges are taken from.
        rounds: Interleaved rounds.
        in_a_row: Batches of a turn: with 1 everyone's weights are driven from the caches by the others'.
        output: JSON file.
    """
    torch.set_num_threads(1)
    found = {}
    for name in networks or [name for name in BACKBONES if "tiny" not in name]:
        network, policy, data = prepare(name, budget, exits or "second", ConfidenceGate)
        example = pytree.tree_map(lambda leaf: leaf[:3], inputs_of(data, "val", 3))
        if isinstance(example, dict):
            example["attention_mask"] = torch.ones_like(example["attention_mask"])
        with TemporaryDirectory(prefix="eenet-") as folder:
            place = Path(folder)
            ranges = Integers(inputs_of(data, "train", calibrating), place / "ranges.json")
            made = ranges.convert(onnx_steps(network, policy, place / "steps", example)[0])
            plain, whole, known = AllExits(made.plain), AllExits(made.whole), inputs_of(data, "val", samples)
            exact = chosen(network, policy, plain(known), budget)
            coarse = chosen(network, policy, whole(known), budget)
            export_network(network, exact, place / "float", example, "onnx", one=True)
            export_network(network, coarse, place / "int8", example, "onnx", one=True, integers=ranges)
            routed, routed_int8 = load(place / "float"), load(place / "int8")
            costs = {unit: column.full for unit, column in network.costs.columns.items()}
            contenders = [
                Contender("full, float", "full", full_network(network, example), costs),
                Contender("full, int8", "static", InParts(Last(made.whole, -1)), costs),
                Contender("routed, float", "routed", InParts(routed)),
                Contender("routed, int8", "routed", InParts(routed_int8)),
            ]
            rows = drawn(data, "test", samples)
            timed = {}
            for size in batches or [1, 32, 256]:
                given = batched(data, rows, size)
                left = torch.cat([routed_int8(batch).exits for batch in given])
                expected = torch.cat([choose_exits(network, coarse, whole(batch))[0] for batch in given])
                keys = ("name", "p50_ms", "cpu_speedup", "theoretical_speedup")
                timed[f"batch_{size}"] = {
                    "other_exits": int((left != expected).sum()),
                    "rows": [
                        {key: row[key] for key in keys} for row in race(contenders, given, size, rounds, CPU, in_a_row)
                    ],
                }
            logits = [run(inputs_of(data, "test", samples))[:, -1] for run in (plain, whole)]
            agree = (logits[0].argmax(-1) == logits[1].argmax(-1)).double().mean().item()
            layers = {"layers": made.layers, "left": made.left, "same_class": agree}
            found[name] = {"exits": network.exit_stages, **layers, **timed}
    about = {"device": device_name(CPU), "budget": budget, "samples": samples, "calibrating": calibrating}
    about |= {"rounds": rounds, "in_a_row": in_a_row}
    finish({**about, "onnxruntime": version("onnxruntime"), "networks": found}, output)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli(integers)
