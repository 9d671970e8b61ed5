"""`eenet calibrate RUN --budget-bitops` for QuEE: a first width and a lambda for each budget, from a trained curve."""

from typing import cast

from lightning.fabric.plugins import TorchCheckpointIO
from rich.table import Table

from eenet.calibration import OperatingPoint, Temperatures
from eenet.cli.runs import Run
from eenet.cli.wishes import ON_VALIDATION, Granted, Wishes, grant
from eenet.errors import UserError
from eenet.policies import Policy
from eenet.quantization import PathPolicy, point_for_budget
from eenet.reporting import make_console
from lightning_modules import QuEE
from lightning_modules.choosing import amend

WISH = "budget-bitops"


def calibrate_paths(run: Run, policy: str, wishes: Wishes) -> Granted:
    """Choose points on the validation half that taught no predictor, and add them to the run's calibration file.

    Nothing runs where the curve of that half is in the checkpoint; where the training came to no whole validation, the
    predictors are fitted here and put there. Temperatures and conformal sets are for exits at one
    width; the file holds temperatures of 1.

    Args:
        run: A run of QuEE.
        policy: Must be `own`.
        wishes: Budgets, as fractions of the float network's BitOPs, under `WISH`.

    Raises:
        UserError: Another wish or policy, or too few samples for predictors.
    """
    model = cast(QuEE, run.model)
    if policy != "own":
        raise UserError("policy", policy, "QuEE's predictors and lambda decide; leave it out")
    wishes.require((WISH,), f"QuEE takes --{WISH}")
    if wishes.dearest:
        raise UserError("dearest", True, "QuEE's curve says how accurate each point is; leave it out")
    if model.objections(model.own_points(), run.split):
        batches = (run.data.transfer_batch_to_device(batch, run.device, 0) for batch in run.data.loader("val"))
        model.fit_on(batches, run.split)
        amend(run.checkpoint, model, model.state_dict(), TorchCheckpointIO())
    curve, half = model.curves()["quee"], len(run.data.loader("val").dataset)  # type: ignore[arg-type]
    samples = half - half // 2

    def choose(wish: str, budget: float) -> OperatingPoint:
        width, tradeoff, accuracy, bitops = point_for_budget(curve, budget, wish)
        error = (accuracy * (1 - accuracy) / samples) ** 0.5
        got = {"accuracy": accuracy, "accuracy_se": error, "bitops_fraction": bitops}
        chosen, asked = cast(Policy, PathPolicy(width, tradeoff)), wishes.asked(wish, budget)
        return OperatingPoint(chosen, None, asked, got, chosen_on=model.validated_on)

    granted = grant(policy, wishes, choose)
    if granted.points:
        table = Table("point", "first width", "lambda", "validation accuracy %", "validation BitOPs %")
        for name, point in granted.points.items():
            setting, got = point.policy.arguments(), {key: 100 * value for key, value in point.got.items()}
            accuracy = f"{got['accuracy']:.2f} ± {got['accuracy_se']:.2f}"
            width, tradeoff = f"{setting['first_width']}", f"{setting['tradeoff']:g}"
            table.add_row(name, width, tradeoff, accuracy, f"{got['bitops_fraction']:.2f}")
        make_console().print(table)
        print(ON_VALIDATION)
    granted.write(run, samples, Temperatures.none(model.network.num_exits))
    return granted
