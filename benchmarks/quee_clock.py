"""QuEE's mixed widths by the clock: `python benchmarks/quee_clock.py RUN BACKBONE_RUN`.

RUN is a run of QuEE with tested budgets, BACKBONE_RUN that of its backbone. Mixed paths run in torch, every segment of
at most 8 bits by int8 products; beside them the network at 8 bits throughout, executed alike, and what a user would
ship otherwise: the full network on ONNX Runtime in float, in int8 and with weights of 4 bits. One thread; contenders
take turns on the same test samples in processor time, and a ratio is the median of the rounds' ratios to the full float
network on ONNX Runtime. Test accuracies of QuEE's points and of the static network are those of `results.json`.
"""

import json
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from integers import Last, inputs_of
from jsonargparse import auto_cli
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from report import finish
from runtime import CPU, batched
from torch import Tensor

from eenet.api.opening import drawn, open_run
from eenet.exporting.contenders import full_network
from eenet.exporting.folder import onnx_steps
from eenet.exporting.integers import Integers
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold
from eenet.quantization import QuantizedNetwork
from eenet.runtime.contenders import Contender, InParts, race
from eenet.runtime.onnx_program import make_session

WIDTH = 8


def four_bits(model: Any) -> Any:
    """Runs an ONNX graph with the weights of its products in 4 bits, in blocks of 32; `None` where it has no such."""
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)
    quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    found = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in found.graph.node):
        return None
    session = make_session(found.SerializeToString())
    name = session.get_inputs()[0].name
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


def shipped(run: str, example: Tensor, folder: Path, calibrating: int) -> dict[str, Any]:
    """The full backbone of a run on ONNX Runtime, by its arithmetic."""
    opened = open_run(run)
    network = EarlyExitNetwork(opened.model.network.backbone, [0], gate=ConfidenceGate).eval()
    ranges = Integers(inputs_of(opened.data, "train", calibrating), folder / "ranges.json")
    graphs = ranges.convert(onnx_steps(network, Threshold([2.0]), folder / "steps", example)[0])
    return {
        "float": full_network(network, example),
        "int8": InParts(Last(graphs.whole, -1)),
        "4-bit weights": four_bits(Last(graphs.plain, -1).model),
    }


@torch.no_grad()
def main(
    run: str,
    backbone: str,
    points: list[float] = [0.012, 0.02, 0.03],  # noqa: B006
    batches: list[int] = [1, 32, 256],  # noqa: B006
    samples: int = 256,
    calibrating: int = 256,
    rounds: int = 5,
    output: Path | None = None,
) -> None:
    """Time.

    Args:
        run: Of QuEE.
        backbone: Run of its backbone.
        points: Budgets of the run, as fractions of the BitOPs, whose routed points are timed.
        batches: Batch sizes.
        samples: Test samples of a round.
        calibrating: Training samples that ranges of ONNX Runtime's int8 are taken from.
        rounds: Interleaved rounds.
        output: JSON file.
    """
    torch.set_num_threads(1)
    opened, results = open_run(run), json.loads((Path(run) / "results.json").read_text())
    network = opened.model.network.eval()
    assert isinstance(network, QuantizedNetwork)
    network.native = True
    example = inputs_of(opened.data, "val", 3)
    routed = {row["budget"]: row["quee"] for row in results["at_budgets"] if row["budget"] in points}
    accuracies = {f"QuEE, {budget:g}": row["accuracy"] for budget, row in routed.items()}
    accuracies["torch, 8 bits"] = results["static_widths"][str(WIDTH)][-1]["accuracy"]
    rows = drawn(opened.data, "test", samples)
    whole = dict.fromkeys(("macs", "bitops"), 1.0)
    with TemporaryDirectory(prefix="eenet-") as folder:
        static = shipped(backbone, example, Path(folder), calibrating)
        contenders = [Contender(f"ONNX Runtime, {name}", "static", one, whole) for name, one in static.items() if one]
        contenders += [Contender("torch, 8 bits", "static", network.twin(WIDTH), whole)]
        for budget, row in routed.items():
            policy = network.policy(row["width"], row["knob"])
            contenders.append(
                Contender(f"QuEE, {budget:g}", "routed", lambda inputs, policy=policy: network.route(inputs, policy))
            )
        timed = {
            f"batch_{size}": [
                {key: row[key] for key in ("name", "p50_ms", "cpu_speedup")}
                for row in race(contenders, batched(opened.data, rows, size), size, rounds, CPU)
            ]
            for size in batches
        }
    finish({"run": run, "samples": samples, "rounds": rounds, "accuracy": accuracies, **timed}, output)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli(main)
