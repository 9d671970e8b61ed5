"""What `eenet inspect` prints: the stages of a model, a proposal of exits, and the formats that take it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.exits import stage_fractions, stages_at
from eenet.exporting import onnx_program, torch_program
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold
from eenet.runtime.manifest import Format
from eenet.runtime.trace import Traced, trace

FRACTIONS = [0.25, 0.5, 0.75]


def backbone_of(config: Path, weights: str | None) -> StagedBackbone:
    """The backbone of a configuration; a `UserError` where it has none, or weights were given beside it."""
    from eenet.api.opening import build
    from eenet.runs import load_config

    if weights is not None:
        raise UserError("weights", weights, "is for a model; in a configuration set the backbone's `pretrained`")
    values = load_config(config)
    if "model" not in values:
        raise UserError("config", str(config), "has no `model`, whose backbone could be inspected")
    made = build({key: values[key] for key in ("model", "data") if key in values})
    if "data" in values:
        made.model.meet(made.data)
    return made.model.network.backbone


def show(backbone: StagedBackbone, formats: bool) -> None:
    """Print the stages, a proposal, and what can be exported."""
    from rich.table import Table

    from eenet.reporting.console import show

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = EarlyExitNetwork(backbone, gate=ConfidenceGate).eval()
        costs = network.parts
    reached = stage_fractions(backbone)
    names = backbone.stage_names or [""] * backbone.num_stages
    table = Table("stage", "ends at", "state", "MACs", "so far %", "exit there", title=f"{costs.full:,} MACs in all")
    for stage, shapes in enumerate(state_shapes(backbone)):
        head = "own head" if stage == backbone.num_stages - 1 else f"+ {costs.heads[stage]:,}"
        table.add_row(str(stage), names[stage], shapes, f"{costs.stages[stage]:,}", f"{100 * reached[stage]:.1f}", head)
    show(table)
    chosen = propose(reached)
    said = ", ".join(names[stage] or str(stage) for stage in chosen)
    spent = ", ".join(f"{100 * reached[stage]:.0f}" for stage in chosen)
    print(
        f"proposal: exits: [{said}], after {spent} % of the MACs" if chosen else "proposal: none, no stage ends early"
    )
    if not formats or not chosen:
        return
    network = EarlyExitNetwork(backbone, chosen, gate=ConfidenceGate).eval()
    for name, problem in exportable(network, example_of(backbone)).items():  # what has steps in ONNX has one file, too
        print(f"export as {name}: {f'no, {problem}' if problem else 'yes'}")


def propose(reached: list[float]) -> list[int]:
    """The stages nearest to a quarter, half and three quarters of the MACs, each once."""
    found: list[int] = []
    for fraction in FRACTIONS if len(reached) > 1 else ():
        (stage,) = stages_at({"fractions": [fraction]}, reached)
        if stage not in found:
            found.append(stage)
    return sorted(found)


@torch.no_grad()
def state_shapes(backbone: StagedBackbone) -> list[str]:
    """Shapes of the state's tensors after each stage, the batch as `n`."""
    state, found = backbone.embed(backbone.example_input()), []
    for stage in range(backbone.num_stages):
        state = backbone.run_stage(stage, state)
        leaves = torch.utils._pytree.tree_leaves(state)
        found.append(" ".join(f"({', '.join(['n', *map(str, leaf.shape[1:])])})" for leaf in leaves))
    return found


def example_of(backbone: StagedBackbone) -> Any:
    """Three inputs, texts without padding."""
    one = backbone.example_input()
    return torch.utils._pytree.tree_map(lambda rows: rows[:1].expand(3, *rows.shape[1:]).contiguous(), one)


def exportable(network: EarlyExitNetwork, example: Any) -> dict[Format, str]:
    """Why a network has no form in each format of `eenet export`, empty where it has one.

    Args:
        network: In evaluation mode, on the CPU.
        example: Three or more inputs.
    """
    writers: dict[Format, Callable[[Traced], object]] = {
        "torch": torch_program.encode,
        "onnx": onnx_program.translate,
    }
    problems: dict[Format, str] = dict.fromkeys(writers, "")
    try:
        for _, step in trace(network, Threshold([0.5] * (network.num_exits - 1)), example):
            for name in [name for name in writers if not problems[name]]:
                problems[name] = _problem(writers[name], step)
    except UserError as error:
        problems = {name: problem or error.problem for name, problem in problems.items()}
    return problems


def _problem(write: Callable[[Traced], object], step: Traced) -> str:
    try:
        write(step)
    except UserError as error:
        return error.problem
    return ""
