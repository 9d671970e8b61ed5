"""The name of a store: a digest of everything that decides what is in it."""

import hashlib
import json

from torch import nn

from eenet.files import tensor_digest
from eenet.network import EarlyExitNetwork


def feature_key(network: EarlyExitNetwork, data: str, dtype: str) -> str:
    """Digest of the backbone's content, what else its features depend on, the data and the dtype.

    Args:
        network: The network.
        data: What identifies the samples and their transform.
        dtype: Of the stored features.

    Returns:
        32 hex digits.
    """
    facts = {
        "backbone": network.backbone.description(),
        "weights": content_digest(network.backbone),
        **network.feature_facts(),
        "data": data,
        "dtype": dtype,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def content_digest(module: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of a module's state, as hex.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> content_digest(one) == content_digest(other)
        False
        >>> _ = other.load_state_dict(one.state_dict())
        >>> content_digest(one) == content_digest(other)
        True
    """
    return tensor_digest(module.state_dict().items())
