"""What the parts of a network take on ONNX Runtime: its steps cut where stages, head and gate end."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.errors import UserError
from eenet.exporting.contenders import full_network
from eenet.exporting.folder import onnx_steps
from eenet.exporting.routed_onnx import compose, cut, never
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy
from eenet.profile import Seconds
from eenet.runtime.clock import medians
from eenet.runtime.onnx_program import feed, make_session
from eenet.tokens import like

NOTHING = """<ir_version: 10, opset_import: ["": 20]> nothing (float[1] input_0) => (float[1] same) {
same = Identity(input_0) }"""
"""What a call costs that computes nothing."""


def clock_onnx(
    network: EarlyExitNetwork, policy: Policy, inputs: Any, example: Any, rounds: int, device_name: str
) -> Seconds:
    """Time the parts of a network on ONNX Runtime, on one batch that nobody leaves.

    Head and gate are what a step takes more with them than without; the hand-over is what the whole file takes more
    than its parts, an equal share for each exit.

    Args:
        network: On the CPU, in evaluation mode.
        policy: Decides who leaves.
        inputs: A batch.
        example: Three or more inputs, texts without padding.
        rounds: That count.
        device_name: What the device is called.

    Raises:
        UserError: The network's tree branches, or it has no form in ONNX.
    """
    if network.tree.branches:
        raise UserError("profile", "a tree", "is of a chain of exits; a network whose paths branch has BitOPs")
    onnx: Any = import_module("onnx")
    with TemporaryDirectory(prefix="eenet-") as folder:
        steps, specs, _ = onnx_steps(network, policy, Path(folder, "steps"), example)
    tensors = pytree.tree_leaves(like(example, inputs))
    batch = len(tensors[0])
    macs = network.costs.columns["macs"].routed
    whole = make_session(compose(never(steps), specs, macs, one=batch == 1).SerializeToString())
    given = {entry.name: tensor.numpy() for entry, tensor in zip(whole.get_inputs(), tensors, strict=True)}
    runs: dict[str, Any] = {"whole": lambda _: whole.run(None, given)}
    last = len(steps) - 1
    for number, step in enumerate(steps):
        handed_on = range(len(step.graph.output) - (1 if number == last else 2))
        kinds = ["segment"] if number == last else ["segment", "head", "gate"]
        ends = ([*handed_on, len(handed_on)],) if number == last else (handed_on, [*handed_on, len(handed_on)], None)
        for kind, places in zip(kinds, ends, strict=True):
            runs[f"{kind} {number}"] = _Run(cut(step, places), tensors)
        if number < last:
            tensors = _Run(cut(step, handed_on), tensors)(None)
    runs["call"] = _Run(onnx.parser.parse_model(NOTHING), [torch.zeros(1)])
    full = full_network(network, example)
    full.tune(inputs)
    found = medians({**runs, "full": full}, [inputs], rounds, torch.device("cpu"))
    parts = {name: found[name] - found["call"] for name in found if name.startswith("segment")}
    heads = [max(0.0, found[f"head {exit}"] - found[f"segment {exit}"]) for exit in range(last)]
    gates = [max(0.0, found[f"gate {exit}"] - found[f"head {exit}"]) for exit in range(last)]
    rest = found["whole"] - sum(parts.values()) - sum(heads) - sum(gates)
    segments = list(parts.values())
    segments[0] += found["call"]
    shares = max(0.0, rest - found["call"]) / max(last, 1)
    return Seconds(
        device_name,
        "onnx",
        torch.get_num_threads(),
        batch,
        tuple(segments),
        tuple(heads),
        tuple(gates),
        (shares,) * last,
        found["full"],
    )


class _Run:
    """Runs a model on tensors that are always the same.

    Args:
        model: The model.
        tensors: Its inputs by place.
    """

    def __init__(self, model: Any, tensors: Sequence[Tensor]) -> None:
        self.session = make_session(model.SerializeToString())
        self.given = feed([entry.name for entry in self.session.get_inputs()], tensors)

    def __call__(self, _: Any) -> list[Tensor]:
        return [torch.from_numpy(result) for result in self.session.run(None, self.given)]
