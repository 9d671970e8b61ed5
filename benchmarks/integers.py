"""What int8 arithmetic takes by the clock, whole and routed, on ONNX Runtime.

    python benchmarks/integers.py --networks '[cifar_resnet_14]'
    python benchmarks/integers.py --run runs/fashion_mnist_resnet_decoupled

Prints JSON; `--output` writes it, too. Weights are random but for MiniLM's backbone: what is timed depends on where
samples leave, not on whether they are right. Thresholds of the float and of the int8 network are set each on its own
scores of validation samples, to the same mean MACs. With `--run` the weights are that run's, and both thresholds are
the cheapest with which the routed network is right on as many validation samples as the full int8 network; how many
test samples each gets right is told beside the times. One thread; contenders take turns on the same test samples, in
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
from eenet.api.opening import drawn, open_run
from eenet.calibration.search import Scored, policy_for_accuracy, within_budget
from eenet.exporting import export_network
from eenet.exporting.contenders import full_network
from eenet.exporting.folder import choose_exits, onnx_steps
from eenet.exporting.integers import AllExits, Integers
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, Threshold
from eenet.runtime import load
from eenet.runtime.contenders import Contender, InParts, device_name, race
from eenet.runtime.onnx_program import make_session


def inputs_of(data: SplitData, split: str, samples: int) -> Any:
    """Inputs of samples of a split, drawn once."""
    return batch_of(data, split, samples)[0]


def batch_of(data: SplitData, split: str, samples: int | None) -> Any:
    """Inputs and labels of samples of a split, drawn once; of all of them with `None`."""
    dataset = data.dataset(split)  # type: ignore[arg-type]
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:samples].tolist()
    return next(iter(data.load(Subset(dataset, rows), batch_size=len(rows))))


def chosen(network: EarlyExitNetwork, policy: Policy, logits: Tensor, budget: float) -> Policy:
    """A policy turned to the dearest setting within a budget by every exit's logits; labels have no part in it."""
    predictions, scores = logits.argmax(-1), network.gate(logits[:, :-1])
    right = torch.ones_like(predictions, dtype=torch.bool)
    scored = Scored(predictions, scores, right, network.costs.fractions())
    return within_budget(policy, scored, budget, "budget", dearest=True)


def as_right(network: EarlyExitNetwork, policy: Policy, logits: Tensor, labels: Tensor, least: float) -> Policy:
    """A policy turned to the cheapest setting that is right on at least such a share of the samples."""
    predictions, scores = logits.argmax(-1), network.gate(logits[:, :-1])
    correct = predictions == labels.unsqueeze(1)
    drop = 100 * (correct[:, -1].double().mean().item() - least)
    return policy_for_accuracy(policy, Scored(predictions, scores, correct, network.costs.fractions()), max(drop, 0.0))


def open_network(run: str, stages: list[int] | None) -> tuple[EarlyExitNetwork, Threshold, SplitData]:
    """The network of a run with thresholds on its highest probability at exits after some stages, and its data."""
    opened = open_run(run)
    network = opened.model.network
    kept = [network.exit_stages.index(stage) for stage in stages or network.exit_stages]
    network = network.keeping(kept, ConfidenceGate(len(kept))).eval()
    return network, Threshold([0.9] * len(kept)), opened.data


class Last:
    """The full int8 network: what the last exit alone needs of the graph of all exits."""

    def __init__(self, model: Any, exit: int) -> None:
        from eenet.exporting.one_graph import heads_of

        self.model = heads_of(model, [model.graph.output[exit].name])
        self.session = make_session(self.model.SerializeToString())
        self.names = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, inputs: Any) -> Tensor:
        tensors = pytree.tree_leaves(inputs)
        given = {name: tensors[int(name.removeprefix("input_"))].numpy() for name in self.names}
        return torch.from_numpy(self.session.run(None, given)[0])


def judged(network: EarlyExitNetwork, batch: Any, *networks: tuple[AllExits, Policy]) -> dict[str, Any]:
    """Accuracy in percent of the full and the routed network and the latter's share of MACs, in float and in int8."""
    inputs, labels = batch
    rows = {}
    for kind, (run, policy) in zip(("float", "int8"), networks, strict=True):
        logits = run(inputs)
        exits, _ = choose_exits(network, policy, logits)
        right = logits.argmax(-1) == labels.unsqueeze(1)
        rows[kind] = {
            "full": 100 * right[:, -1].double().mean().item(),
            "routed": 100 * right.gather(1, exits.unsqueeze(1)).double().mean().item(),
            "macs": network.costs.fractions()[exits].mean().item(),
        }
    return rows


@torch.no_grad()
def integers(
    networks: list[str] | None = None,
    run: str | None = None,
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
        run: Run with trained exits instead; thresholds are then those that are as right as the full int8 network.
        exits: Stages after which an exit reads; by default every second, of a run all that it has.
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
    for name in [run] if run else networks or [name for name in BACKBONES if "tiny" not in name]:
        network, policy, data = (
            open_network(run, exits) if run else prepare(name, budget, exits or "second", ConfidenceGate)
        )
        example = pytree.tree_map(lambda leaf: leaf[:3], inputs_of(data, "val", 3))
        if isinstance(example, dict):
            example["attention_mask"] = torch.ones_like(example["attention_mask"])
        with TemporaryDirectory(prefix="eenet-") as folder:
            place = Path(folder)
            ranges = Integers(inputs_of(data, "train", calibrating), place / "ranges.json")
            graphs = ranges.convert(onnx_steps(network, policy, place / "steps", example)[0])
            plain, whole = AllExits(graphs.plain), AllExits(graphs.whole)
            known, labels = batch_of(data, "val", None if run else samples)
            said = plain(known), whole(known)
            if run:
                least = (said[1][:, -1].argmax(-1) == labels).double().mean().item()
                exact, coarse = (as_right(network, policy, logits, labels, least) for logits in said)
            else:
                exact, coarse = (chosen(network, policy, logits, budget) for logits in said)
            export_network(network, exact, place / "float", example, "onnx", one=True)
            export_network(network, coarse, place / "int8", example, "onnx", one=True, integers=ranges)
            routed, routed_int8 = load(place / "float"), load(place / "int8")
            costs = {unit: column.full for unit, column in network.costs.columns.items()}
            contenders = [
                Contender("full, float", "full", full_network(network, example), costs),
                Contender("full, int8", "static", InParts(Last(graphs.whole, -1)), costs),
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
            logits = [graph(inputs_of(data, "test", samples))[:, -1] for graph in (plain, whole)]
            agree = (logits[0].argmax(-1) == logits[1].argmax(-1)).double().mean().item()
            layers = {"layers": graphs.layers, "left": graphs.left, "same_class": agree}
            found[name] = {"exits": network.exit_stages, **layers, **timed}
            if run:
                found[name]["test"] = judged(network, batch_of(data, "test", None), (plain, exact), (whole, coarse))
    about = {"device": device_name(CPU), "budget": budget, "samples": samples, "calibrating": calibrating}
    about |= {"rounds": rounds, "in_a_row": in_a_row}
    finish({**about, "onnxruntime": version("onnxruntime"), "networks": found}, output)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli(integers)
