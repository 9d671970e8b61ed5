"""What `eenet predict` returns."""

from torch import Tensor

from eenet.routing import Routed


def predicted(routed: Routed) -> dict[str, Tensor]:
    """What `predict` returns of routed samples: `labels`, `probabilities`, `exits` and `macs`, and `bitops`."""
    probabilities = routed.logits.softmax(-1)
    return {
        "labels": probabilities.argmax(-1),
        "probabilities": probabilities,
        "exits": routed.exits,
        "macs": routed.macs,
        **({} if routed.bitops is None else {"bitops": routed.bitops}),
    }
