"""`eenet calibrate RUN --budget-bitops` for QuEE: a first width and a lambda for each budget, from a trained curve."""

from typing import cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from rich.table import Table

from eenet.calibration import Calibration, OperatingPoint
from eenet.calibration.points import CALIBRATION, point_name
from eenet.cli.runs import Run
from eenet.errors import UserError, command
from eenet.files import sha256
from eenet.policies import Policy
from eenet.quantization import PathPolicy, point_for_budget
from eenet.reporting import make_console
from lightning_modules import QuEE
from lightning_modules.choosing import amend

WISH = "budget-bitops"


def calibrate_paths(run: Run, policy: str, wishes: dict[str, list[float]]) -> Calibration:
    """Choose points on the validation half that taught no predictor, and add them to the run's calibration file.

    Nothing runs where the curve of that half is in the checkpoint; where the training came to no whole validation, the
    predictors are fitted here and put there. Temperatures and conformal sets are for exits at one
    width; the file holds temperatures of 1.

    Args:
        run: A run of QuEE.
        policy: Must be `own`.
        wishes: Budgets, as fractions of the float network's BitOPs, under `WISH`; the others must be empty.

    Raises:
        UserError: Another wish or policy, too few samples for predictors, or a budget that no point keeps.
    """
    model = cast(QuEE, run.model)
    if policy != "own":
        raise UserError("policy", policy, "QuEE's predictors and lambda decide; leave it out")
    for wish, values in wishes.items():
        if values and wish != WISH:
            raise UserError(wish, values, f"QuEE takes --{WISH}")
    if model.objections(model.own_points(), run.split):
        batches = (run.data.transfer_batch_to_device(batch, run.device, 0) for batch in run.data.loader("val"))
        model.fit_on(batches, run.split)
        amend(run.checkpoint, model, model.state_dict(), TorchCheckpointIO())
    curve, points = model.curves()["quee"], {}
    for budget in wishes[WISH]:
        width, tradeoff, accuracy, bitops = point_for_budget(curve, budget, WISH)
        chosen = cast(Policy, PathPolicy(width, tradeoff))
        got = {"accuracy": accuracy, "bitops_fraction": bitops}
        points[point_name(policy, WISH, budget)] = OperatingPoint(
            chosen, None, {WISH: budget}, got, chosen_on=model.validated_on
        )
    path, samples = run.folder / CALIBRATION, len(run.data.loader("val").dataset)  # type: ignore[arg-type]
    found = Calibration(sha256(run.checkpoint), samples - samples // 2, torch.ones(model.network.num_exits), points)
    found.add_to(path)
    table = Table("point", "first width", "lambda", "validation accuracy %", "validation BitOPs %")
    for name, point in points.items():
        setting, (accuracy, bitops) = point.policy.arguments(), (100 * value for value in point.got.values())
        table.add_row(name, f"{setting['first_width']}", f"{setting['tradeoff']:g}", f"{accuracy:.2f}", f"{bitops:.2f}")
    make_console().print(table)
    use = command("test", "--config", run.folder / "config.yaml", "--point", "all").strip("`")
    print(f"calibration: {path}\nuse it with: {use}")
    return found
