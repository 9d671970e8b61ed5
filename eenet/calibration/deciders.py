"""What the name of a policy stands for in `eenet calibrate --policy NAME`."""

from collections.abc import Callable

from eenet.gates import ConfidenceGate, Gate, SaturationGate
from eenet.policies import Patience, Policy, Threshold


def decider(
    name: str, num_gates: int, own: Policy, fit_scheduler: Callable[[], Gate] | None = None
) -> tuple[Gate | None, Policy]:
    """The gate, and some setting of the policy; no gate for the network's own.

    Args:
        name: `own`, `random` (routed like `own`), `patience`, `scheduler`, `saturation`, `geometric`, `per_class`, or a
            confidence.
        num_gates: Early exits.
        own: The policy that the run was trained with; of a threshold that all exits share its value is of no account.
        fit_scheduler: Makes the gate of `scheduler`.

    Example:
        >>> decider("patience", 3, Threshold([0.5] * 3))
        (ConfidenceGate(), Patience())
    """
    if name in ("own", "random"):
        shared = isinstance(own, Threshold) and len(set(own.thresholds.tolist())) == 1
        return None, Threshold([0.0] * num_gates) if shared else own
    if name == "patience":
        return ConfidenceGate(num_gates), Patience()
    thresholds = Threshold([0.0] * num_gates)
    if name == "scheduler" and fit_scheduler is not None:
        return fit_scheduler(), thresholds
    if name == "per_class":
        return ConfidenceGate(num_gates), thresholds
    if name == "geometric":
        return ConfidenceGate(num_gates, "max_logit"), thresholds
    return SaturationGate(num_gates) if name == "saturation" else ConfidenceGate(num_gates, name), thresholds  # type: ignore[arg-type]
