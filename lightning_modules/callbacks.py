"""The random state that makes a resumed run the same run."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback


class RandomState(Callback):
    """Keeps Python's, NumPy's and torch's random state in the checkpoint and restores it when a run resumes."""

    def state_dict(self) -> dict[str, Any]:
        """The states, as plain values and tensors."""
        kind, keys, *rest = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the states back."""
        version, internal, gauss = state_dict["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = state_dict["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state_dict["torch"])
        if len(state_dict["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(state_dict["cuda"])
