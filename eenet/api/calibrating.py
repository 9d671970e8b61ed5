"""Operating points, temperatures and conformal sets from the validation split of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eenet.api.opening import Run, opened, read_split, read_training
from eenet.api.seen import check_unseen
from eenet.calibration import Calibration, OperatingPoint, Temperatures, fit_temperatures
from eenet.calibration.candidates import POLICY_NAMES, STOPPING, PolicyName, stopping_gate
from eenet.calibration.chooser import Chooser, check_wishes
from eenet.calibration.chosen import warn_nobody_leaves
from eenet.calibration.conformal import ConformalMode, QuantileRule
from eenet.calibration.points import CALIBRATION
from eenet.calibration.stopping import most_samples
from eenet.calibration.wishes import Wishes, grant
from eenet.decoding import DecoderNetwork
from eenet.decoding.chooser import POLICIES, TokenChooser, check_token_wishes
from eenet.errors import UnmetError, UserError
from eenet.files import check_writable, sha256
from eenet.runs import read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from eenet.api.clocks import Runtime

NAMES = tuple(dict.fromkeys((*POLICY_NAMES, *POLICIES)))
"""Policies of classifiers and decoders."""


@dataclass(frozen=True)
class Calibrated:
    """What a calibration chose.

    Attributes:
        run: The run.
        points: Operating points by name, which `file` has too, beside those of calibrations before.
        unmet: Why other wishes, and conformal sets, were not met.
        samples: Of the validation split; a decoder's are tokens.
        file: The run's calibration file.
    """

    run: Run
    points: dict[str, OperatingPoint]
    unmet: list[UnmetError]
    samples: int
    file: Path


def calibrate(
    run: Run | str | Path,
    budget: Sequence[float] = (),
    *,
    budget_macs: Sequence[float] = (),
    budget_bitops: Sequence[float] = (),
    budget_ms: Sequence[float] = (),
    max_accuracy_drop: Sequence[float] = (),
    max_disagreement: Sequence[float] = (),
    max_perplexity_increase: Sequence[float] = (),
    max_rouge_drop: Sequence[float] = (),
    risk: Sequence[float] = (),
    delta: float = 0.1,
    alpha: Sequence[float] = (0.1,),
    conformal: Sequence[ConformalMode] = Wishes.modes,
    quantile: QuantileRule = Wishes.rule,
    dearest: bool = False,
    place: bool = False,
    policy: PolicyName = "own",
    batch_size: int = 1,
    threads: int | None = None,
    runtime: "Runtime" = "torch",
    checkpoint: str = "last",
) -> Calibrated:
    """Choose points and add them to the run's calibration file; a point of the same name is replaced.

    Predictors that training came to no whole validation to fit are fitted first, and put into the checkpoint.

    Args:
        run: The run, or its folder.
        budget: Fractions of the full network's MACs in (0, 1].
        budget_macs: Mean MACs per sample.
        budget_bitops: Of a quantized network: fractions of the float network's BitOPs.
        budget_ms: Mean milliseconds per sample by the clock, after `time_parts` of the same batch, runtime and threads.
        max_accuracy_drop: Points of accuracy below the full network.
        max_disagreement: Of a decoder: share of other tokens than the full model's.
        max_perplexity_increase: Of a decoder: percent.
        max_rouge_drop: Of a decoder: points of ROUGE-L; generates.
        risk: Excess error over the full network to certify; of a decoder, mean 1 - ROUGE-L to the full text.
        delta: Probability that a certificate is wrong.
        alpha: Miscoverages of the conformal sets.
        conformal: Whose quantiles.
        quantile: How they are taken.
        dearest: Meet budgets by spending them, not by the most accurate setting within.
        place: Drop early exits without which a wish is met no worse, as those whose head takes longer than it saves.
        policy: What decides.
        batch_size: Of `budget_ms`: samples that are routed together.
        threads: Of `budget_ms`: processor threads of an operator, which stay so; `None` for those of this process.
        runtime: Of `budget_ms`.
        checkpoint: Of a folder: `last`, `best` or a file.

    Raises:
        UserError: Nothing or nonsense is asked for, the validation split is the test split or trained the model, or the
            run's network has no such wish or policy.
    """
    asked = {
        "budget": budget,
        "budget-macs": budget_macs,
        "budget-bitops": budget_bitops,
        "budget-ms": budget_ms,
        "max-accuracy-drop": max_accuracy_drop,
        "risk": risk,
        "max-disagreement": max_disagreement,
        "max-perplexity-increase": max_perplexity_increase,
        "max-rouge-drop": max_rouge_drop,
    }
    values = {name: list(found) for name, found in asked.items()}
    wishes = Wishes(values, delta, list(alpha), tuple(conformal), quantile, dearest, place)
    if policy not in NAMES:
        raise UserError("policy", policy, f"must be one of {', '.join(NAMES)}")
    if not list(wishes):
        raise UserError("budget", "", "nothing is asked for; give --budget, --max-accuracy-drop or --risk")
    run = opened(run, checkpoint)
    check_writable(run.folder)
    check_unseen(run)
    network = run.model.network
    if isinstance(network, DecoderNetwork):
        check_token_wishes(policy, wishes)
    else:
        check_wishes(network, policy, wishes)
    if run.split == run.data.fingerprint("test"):
        problem = "its validation split is its test split; operating points need their own"
        raise UserError("data", run.data.name, problem)
    if policy in ("own", "random") and (why := run.model.untrained) is not None:
        raise UserError("policy", policy, f"{why}; {run.model.remedy(run.folder, run.checkpoint)}")
    if policy == "own" and run.model.fit_on(run.batches("val"), run.split):
        saved, state = read_checkpoint(run.checkpoint, "run"), run.model.state_dict()
        if run.model.amend(saved, state):
            write_checkpoint(saved, run.checkpoint)
    clock = None
    if budget_ms:  # alone needs what writes exports
        from eenet.api.clocks import clock_of

        clock = clock_of(run, batch_size, runtime, threads)
    own = next(iter(run.model.policies().values()))
    chooser: Chooser | TokenChooser
    if isinstance(network, DecoderNetwork):
        chooser = TokenChooser(network, own, policy, wishes, run.data, run.device, run.chosen_on(0))
        samples, temperatures = chooser.chosen_on.samples, Temperatures.none(network.num_exits)
    else:
        split = read_split(run, "val")
        if policy in STOPPING:
            most = most_samples(stopping_gate(network, policy))
            split = split._replace(training=read_training(run, most))
        called = [network.tree.node_name(node) for node in range(len(network.tree.nodes))]
        samples, temperatures = len(split.labels), fit_temperatures(split.logits, split.labels, called)
        chooser = Chooser(network.cpu(), own, policy, wishes, split, run.chosen_on(samples), clock)
    granted = grant(policy, wishes, chooser.point)
    file = run.file(CALIBRATION)
    if granted.points:
        warn_nobody_leaves(chooser.shares)
        found = Calibration(
            sha256(run.checkpoint), samples, temperatures.values, dict(granted.points), temperatures.doubts
        )
        found.add_to(file)
    return Calibrated(run, granted.points, [*granted.unmet, *chooser.left_out], samples, file)
