"""What the first of several processes alone says, with and without Lightning, which counts them the same way."""

import logging
import os
import sys

from lightning_utilities.core import rank_zero
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["rank_zero_info", "rank_zero_only", "rank_zero_warn"]

if not hasattr(rank_zero_only, "rank"):
    _KEYS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    rank_zero_only.rank = int(next((os.environ[key] for key in _KEYS if key in os.environ), 0))  # type: ignore[attr-defined]
    rank_zero.log = logging.getLogger("eenet")
    rank_zero.log.setLevel(logging.INFO)
    rank_zero.log.addHandler(logging.StreamHandler(sys.stderr))
