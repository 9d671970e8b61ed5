"""The `features` field of a routine that freezes its backbone."""

from dataclasses import dataclass
from typing import Literal, get_args

from eenet.errors import UserError
from eenet.features.layout import DTYPES
from eenet.files import FilePath

Store = Literal["memory", "disk"]


@dataclass(frozen=True)
class FeatureOptions:
    """Where features are kept, and of what.

    Args:
        store: `memory`, or `disk` for a memory-mapped store that later runs share.
        views: Augmented views of each training sample, of which epoch `e` reads view `e % views`; 0 keeps one view
            behind the evaluation transform.
        dtype: What features are stored in; `float16` and `bfloat16` halve the space and round.
        folder: Folder of the stores on disk.

    Raises:
        UserError: Negative number of views, or an unknown store or dtype.
    """

    store: Store = "memory"
    views: int = 0
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    folder: FilePath = "features"

    def __post_init__(self) -> None:
        if self.store not in get_args(Store):
            raise UserError("model.features.store", self.store, f"must be one of {', '.join(get_args(Store))}")
        if self.views < 0:
            raise UserError("model.features.views", self.views, "must be at least 0")
        if self.dtype not in DTYPES:
            raise UserError("model.features.dtype", self.dtype, f"must be one of {', '.join(DTYPES)}")


Features = Literal["off", "memory", "disk", False] | FeatureOptions
"""A store by name, or all options; YAML reads a bare `off` as false."""


def feature_options(features: Features) -> FeatureOptions | None:
    """The options of a `features` field, `None` where it is off.

    Raises:
        UserError: No such store.

    Example:
        >>> feature_options("off"), feature_options("disk").store
        (None, 'disk')
    """
    if isinstance(features, FeatureOptions):
        return features
    if features in ("off", False):
        return None
    for store in get_args(Store):
        if features == store:
            return FeatureOptions(store)
    raise UserError("model.features", features, "must be off, memory, disk, or FeatureOptions (a mapping in a file)")
