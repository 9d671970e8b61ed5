import pytest
import torch

from eenet.errors import UserError
from lightning_modules.losses import LossLog


def test_means_of_each_phase_since_the_last_flush() -> None:
    log = LossLog()
    for phase, batch, value in [("gates", 0, 1.0), ("gates", 1, 3.0), ("warmup", 2, 5.0)]:
        log.add(phase, batch, torch.tensor(value))
    assert {phase: mean.item() for phase, mean in log.flush().items()} == {"gates": 2.0, "warmup": 5.0}
    assert log.flush() == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_is_named(bad: float) -> None:
    log = LossLog()
    for batch, value in enumerate([1.0, bad, bad]):
        log.add("gates", batch + 7, torch.tensor(value))
    with pytest.raises(UserError, match=r"in phase `gates`, batch 8: training stopped"):
        log.flush()
