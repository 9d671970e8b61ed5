"""What `eenet predict` returns."""

from torch import Tensor

from eenet.quantization import RoutedPaths
from eenet.runtime import Routed


def predicted(routed: Routed | RoutedPaths) -> dict[str, Tensor]:
    """What `predict` returns of routed samples: `labels`, `probabilities`, `exits` and `macs`."""
    probabilities = routed.logits.softmax(-1)
    return {
        "labels": probabilities.argmax(-1),
        "probabilities": probabilities,
        "exits": routed.exits,
        "macs": routed.macs,
    }
