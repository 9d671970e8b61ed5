"""The full and the routed network on ONNX Runtime, as `eenet.runtime.race` times them: what a user would ship."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.exporting.folder import export_network
from eenet.exporting.onnx_program import translate
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, Threshold
from eenet.runtime.contenders import Contender, InParts
from eenet.runtime.load import load
from eenet.runtime.onnx_program import feed, make_session
from eenet.runtime.trace import shortened, trace_function
from eenet.tokens import like


def onnx_contenders(
    network: EarlyExitNetwork, routed: Mapping[str, tuple[EarlyExitNetwork, Policy]], example: Any
) -> list[Contender]:
    """The full network, the routed one at every point, and the routed one that nobody leaves, all on ONNX Runtime.

    Args:
        network: On the CPU, in evaluation mode.
        routed: The network and its policy by the name of the point.
        example: Three or more inputs, texts without padding.

    Raises:
        UserError: A package is missing, or a network has no form in ONNX.
    """
    never = Threshold([float("inf")] * (network.num_exits - 1))
    columns = network.costs.columns
    full = {unit: column.full for unit, column in columns.items()}
    passed = {unit: column.routed[-1] for unit, column in columns.items()}
    return [
        Contender("full network", "full", full_network(network, example), full),
        *(
            Contender(f"routed, {name}", "routed", routed_network(*pair, example), None)
            for name, pair in routed.items()
        ),
        Contender("routed, nobody leaves", "overhead", routed_network(network, never, example), passed),
    ]


def routed_network(network: EarlyExitNetwork, policy: Policy, example: Any) -> InParts:
    """A network as `eenet export --format onnx --one` writes it, loaded again."""
    with TemporaryDirectory(prefix="eenet-") as folder:
        export_network(network, policy, Path(folder, "routed"), example, "onnx", one=True)
        runtime = load(Path(folder, "routed"))
    return InParts(runtime if isinstance(example, Tensor) else lambda inputs: runtime(like(example, inputs)))


@torch.no_grad()
def full_network(network: EarlyExitNetwork, example: Any) -> InParts:
    """The plain backbone on ONNX Runtime, a session for any batch and one for 1; a `UserError` without that form."""
    traced = trace_function(
        "full_network", network, None, lambda inputs: (network.backbone(inputs),), example, shortened(network, example)
    )
    model = import_module("onnx_ir").to_proto(translate(traced)[0])
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    content = model.SerializeToString()
    sessions = make_session(content, {batch: 1}), make_session(content)
    names = [entry.name for entry in sessions[0].get_inputs()]

    def run(inputs: Any) -> Tensor:
        tensors = pytree.tree_leaves(like(example, inputs))
        return torch.from_numpy(sessions[len(tensors[0]) > 1].run(None, feed(names, tensors))[0])

    return InParts(run)
