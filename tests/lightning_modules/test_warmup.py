import pytest
import torch
from torch import nn

from lightning_modules.warmup import EarlyStopping


def set_weight(module: nn.Linear, value: float) -> None:
    nn.init.constant_(module.weight, value)


def test_each_module_stops_on_its_own_and_goes_back_to_its_best_weights() -> None:
    modules = [nn.Linear(1, 1), nn.Linear(1, 1)]
    stopping = EarlyStopping(2, patience=2)
    accuracies = [(0.5, 0.1), (0.6, 0.2), (0.6, 0.3), (0.4, 0.4), (0.9, 0.5)]
    for epoch, row in enumerate(accuracies):
        for module in modules:
            set_weight(module, epoch)
        stopping.update(modules, row)
        if epoch == 3:
            assert stopping.stopped == [True, False]
            assert modules[0].weight.item() == 1
    assert stopping.best == [0.6, 0.5]
    stopping.restore(modules)
    assert modules[0].weight.item() == 1
    assert modules[1].weight.item() == 4


def test_state_survives_a_round_trip() -> None:
    modules = [nn.Linear(1, 1)]
    first = EarlyStopping(1, patience=2)
    first.update(modules, [0.5])
    first.update(modules, [0.4])
    second = EarlyStopping(1, patience=2)
    second.load_state_dict(first.state_dict())
    second.update(modules, [0.3])
    assert second.stopped == [True]
    assert second.best == pytest.approx([0.5])
    assert torch.equal(second.weights[0]["weight"], first.weights[0]["weight"])
