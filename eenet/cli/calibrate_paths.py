"""`eenet calibrate RUN --budget-bitops` for QuEE: a first width and a lambda for each budget, from a trained curve."""

from typing import cast

import torch
from rich.table import Table

from eenet.calibration import Calibration, OperatingPoint
from eenet.calibration.points import CALIBRATION, point_name
from eenet.cli.runs import Run
from eenet.errors import UserError
from eenet.files import sha256
from eenet.policies import Policy
from eenet.quantization import PathPolicy, point_for_budget
from eenet.reporting import make_console
from lightning_modules import QuEE

WISH = "budget-bitops"


def calibrate_paths(run: Run, policy: str, wishes: dict[str, list[float]]) -> Calibration:
    """Choose points on the validation half that taught no predictor, and add them to the run's calibration file.

    Nothing runs: the curve of that half is in the checkpoint. Temperatures and conformal sets are for exits at one
    width; the file holds temperatures of 1.

    Args:
        run: A run of QuEE.
        policy: Must be `own`.
        wishes: Budgets, as fractions of the float network's BitOPs, under `WISH`; the others must be empty.

    Raises:
        UserError: Another wish or policy, predictors that are not fitted, or a budget that no point keeps.
    """
    model = cast(QuEE, run.model)
    if policy != "own":
        raise UserError("policy", policy, "QuEE's predictors and lambda decide; leave it out")
    for wish, values in wishes.items():
        if values and wish != WISH:
            raise UserError(wish, values, f"QuEE takes --{WISH}")
    model.check_fitted(str(run.folder))
    curve, points = model.curves()["quee"], {}
    for budget in wishes[WISH]:
        width, tradeoff, accuracy, bitops = point_for_budget(curve, budget, WISH)
        chosen = cast(Policy, PathPolicy(width, tradeoff))
        got = {"accuracy": accuracy, "bitops_fraction": bitops}
        points[point_name(policy, WISH, budget)] = OperatingPoint(chosen, None, {WISH: budget}, got)
    path, samples = run.file(CALIBRATION), len(run.data.loader("val").dataset)  # type: ignore[arg-type]
    found = Calibration(sha256(run.checkpoint), samples - samples // 2, torch.ones(model.network.num_exits), points)
    found.add_to(path)
    table = Table("point", "first width", "lambda", "validation accuracy %", "validation BitOPs %")
    for name, point in points.items():
        setting, (accuracy, bitops) = point.policy.arguments(), (100 * value for value in point.got.values())
        table.add_row(name, f"{setting['first_width']}", f"{setting['tradeoff']:g}", f"{accuracy:.2f}", f"{bitops:.2f}")
    make_console().print(table)
    print(f"calibration: {path}\nuse it with: eenet test {run.options} --point all")
    return found
