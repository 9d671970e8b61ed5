"""A point of a run for its int8 network: ranges from training samples, thresholds by what int8 gives on validation."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Subset

from eenet.api.opening import Chosen, Run, example, read_split
from eenet.api.seen import check_unseen
from eenet.calibration import LogitFile, OperatingPoint, fit_temperatures
from eenet.calibration.candidates import Split
from eenet.calibration.chooser import Chooser
from eenet.calibration.logits import read_exits
from eenet.calibration.search import cost_of, standard_error
from eenet.calibration.wishes import WISHES, Wishes
from eenet.errors import UserError
from eenet.exporting.folder import check_integers, onnx_steps, to_integers
from eenet.exporting.integers import AllExits, Integers
from eenet.policies import FixedExit
from eenet.profile import Costs
from eenet.reporting import gather_exits
from eenet.runtime.clock import medians
from eenet.tokens import like

CLOCKED = (1, 32)
"""Batches on which the int8 network is timed beside the float one."""


@dataclass(frozen=True)
class IntegerPoint:
    """An operating point of an int8 network.

    Attributes:
        chosen: The point, chosen again; its figures and temperatures are those of the int8 network.
        integers: Makes the arithmetic int8, as it was for these figures.
        about: What a manifest says beside the point: `samples` and their `split`, `layers` with int8 arithmetic and
            those that are `left`, the full network's `accuracy` in int8 and `float_accuracy`, and `float_got`, what the
            point gets in floating point.
        speedups: How many times as fast the whole int8 network is here as the float one, by batch size.
    """

    chosen: Chosen
    integers: Integers
    about: dict[str, Any]
    speedups: dict[int, float]


@torch.no_grad()
def choose_integers(run: Run, chosen: Chosen, samples: int, held: ExitStack) -> IntegerPoint:
    """Quantize the network behind a point, and choose the point again on the int8 network's own statistics.

    It is asked again what the point was chosen for; a point of the run's own that validation chose keeps its cost, and
    a policy that nothing chose stays as it is.

    Args:
        run: The run, with its data.
        chosen: The point in floating point.
        samples: Training samples, drawn once without augmentation, that ranges are taken from.
        held: Keeps a temporary file as long as `integers` is used.

    Raises:
        UserError: The run has no such samples, its validation samples trained its backbone, the point is none that can
            be chosen again, or the network has no int8 form.
    """
    own, network = chosen.point, chosen.point.network(run.model.network)
    check_integers(network)
    wishes, few = wishes_of(own), example(run)
    inputs = like(few, training_inputs(run, samples))
    check_unseen(run)
    exact = read_split(run, "val")
    network = network.cpu()
    folder = Path(held.enter_context(TemporaryDirectory(prefix="eenet-")))
    integers = Integers(inputs, folder / "ranges.json")
    steps, _, beyond = onnx_steps(network, own.policy, folder / "steps", few)
    made = to_integers(integers, steps, beyond)
    whole, plain = AllExits(made.whole), AllExits(made.plain)
    labels, logits = exact.labels, LogitFile(len(exact.labels), run.folder)
    for batch, _ in run.batches("val"):
        logits.append(whole(pytree.tree_map(Tensor.cpu, like(few, batch))))
    known = read_exits(logits, labels, network.gate)
    before = read_exits(exact.logits, labels, run.model.network.gate if own.gate is None else own.gate)
    if own.kept is not None:
        early = list(own.kept)
        before = before._replace(predictions=before.predictions[:, [*early, -1]], scores=before.scores[:, early])
    correct, right = known.predictions == labels.unsqueeze(1), before.predictions[:, -1] == labels
    nodes = own.policy.exits(before.predictions, before.scores)
    exact_got = figures(before.predictions == labels.unsqueeze(1), nodes, network.costs)
    if wishes is None and own.chosen_on is not None and not isinstance(own.policy, FixedExit):
        wishes = Wishes({"budget": [min(exact_got["macs_fraction"], 1.0)]}, alphas=[], dearest=True)
    if wishes is None:
        again = replace(own, got=figures(correct, own.policy.exits(known.predictions, known.scores), network.costs))
    else:
        split = Split(logits, labels, reference=right)
        chooser = Chooser(network, own.policy, "own", wishes, split, run.chosen_on(len(labels)))
        again = replace(chooser.point(*next(iter(wishes))), gate=own.gate, asked=own.asked, kept=own.kept)
    temperatures = None
    if chosen.temperatures is not None:
        called = [network.tree.node_name(node) for node in range(len(network.tree.nodes))]
        temperatures = own.put(fit_temperatures(logits, labels, called).values, chosen.temperatures, run.model.network)
    about = {
        "samples": samples,
        "split": "train",
        "layers": made.layers,
        "left": list(made.left),
        "accuracy": correct[:, -1].double().mean().item(),
        "float_accuracy": right.double().mean().item(),
        "float_got": exact_got,
    }
    runs = {"float": plain, "int8": whole}
    speedups = {}
    for rows in CLOCKED:
        times = medians(runs, [pytree.tree_map(lambda leaf, rows=rows: leaf[:rows], inputs)], 5, torch.device("cpu"))
        speedups[rows] = times["float"] / times["int8"]
    return IntegerPoint(Chosen(chosen.name, again, temperatures), integers, about, speedups)


def wishes_of(point: OperatingPoint) -> Wishes | None:
    """What a point was chosen for, `None` where nothing is known of that; a `UserError` where it was by the clock."""
    wish = next((wish for wish in WISHES if wish in point.asked), None)
    if wish is None:
        return None
    if wish == "budget-ms":
        problem = "was kept by the clock of the float network; name a --point of a budget in MACs"
        raise UserError("int8", f"{wish} {point.asked[wish]}", problem)
    values = {wish: [point.asked[wish]]}
    found = Wishes(values, alphas=[], delta=point.asked.get("delta", Wishes.delta), dearest="dearest" in point.asked)
    if not point.conformal:
        return found
    modes, alphas = (list(dict.fromkeys(keys)) for keys in zip(*point.conformal, strict=True))
    return replace(found, modes=tuple(modes), alphas=alphas, rule=next(iter(point.conformal.values())).rule)


def training_inputs(run: Run, samples: int) -> Any:
    """Inputs of training samples that are drawn once, as validation samples are transformed.

    Raises:
        UserError: The run's data have no samples by number, or not so many.
    """
    if not hasattr(run.data, "dataset"):
        problem = "has no samples by number, from which ranges could be taken; leave --int8 out"
        raise UserError("data", type(run.data).__name__, problem)
    if run.split is None:
        raise UserError("data", run.data.name, "is not there; --int8 takes ranges from training samples")
    dataset = run.data.dataset("train")
    if not 1 < samples <= len(dataset):
        raise UserError("int8-samples", samples, f"must be from 2 to the {len(dataset)} training samples")
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:samples].tolist()
    ((inputs, _),) = run.data.load(Subset(dataset, rows), batch_size=samples)
    return inputs


def figures(correct: Tensor, nodes: Tensor, costs: Costs) -> dict[str, float]:
    """What a policy that is kept gets on validation, as `Chooser` says it; `correct` is bool `(samples, nodes)`."""
    right = gather_exits(correct, nodes)
    found = {"accuracy": right.double().mean().item(), "accuracy_se": standard_error(right)}
    return found | {f"{unit}_fraction": cost_of(nodes, column.fractions()) for unit, column in costs.columns.items()}
