"""What of Lightning's words tells a user of early exits nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from eenet.late import EXPECTED

USELESS = (
    "GPU available: False",
    "TPU available",
    "💡 Tip",
    "Loading `train_dataloader`",
    "`Trainer.fit` stopped: `max_epochs",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)
"""How messages begin that advertise, or speak of devices that nobody asked for."""


def drop_useless() -> None:
    """Keep such messages from the terminal."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_helps)  # the same function a second time is no second filter


@contextmanager
def quiet() -> Iterator[None]:
    """Neither such messages nor warnings of what is as it should be."""
    drop_useless()
    with warnings.catch_warnings():
        for message in (*EXPECTED, ".*smaller than the logging interval"):  # where nothing is logged
            warnings.filterwarnings("ignore", message)
        yield


def _helps(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(USELESS)
