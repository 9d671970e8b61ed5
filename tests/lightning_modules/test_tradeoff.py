"""What lambda and the number of exits do to JEI-DNN's training, on stored features."""

import functools
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import Digits
from eenet.inference_modules import LinearHead
from eenet.network import EarlyExitNetwork
from eenet.objectives import cross_entropies
from lightning_modules import JointExits
from tests._dummies import make_network, make_vit


def make_routine(depth: int, exits: Any, **arguments: Any) -> JointExits:
    """A transformer whose random weights are large enough for the exits to differ."""
    seed_everything(0)
    backbone = make_vit(depth=depth, patch_size=2, global_pool="avg")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    network = EarlyExitNetwork(backbone, exits, functools.partial(LinearHead, normalize=True))
    settings = {"optimizer": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9), "features": "memory"}
    return JointExits(network, **{**settings, "phase_batches": 20, **arguments})


def fit(routine: JointExits, folder: Path, epochs: int, **settings: Any) -> JointExits:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    rest = {"enable_checkpointing": False, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
    trainer = Trainer(default_root_dir=folder, max_epochs=epochs, **{**quiet, **rest, **settings})
    trainer.fit(routine, datamodule=Digits(batch_size=64))
    return routine


@pytest.mark.parametrize("tradeoffs", [(0, 30, 100), pytest.param((0, 1, 10, 30, 100), marks=pytest.mark.slow)])
def test_a_larger_lambda_leaves_earlier(tradeoffs: tuple[float, ...], tmp_path: Path) -> None:
    costs = []
    for tradeoff in tradeoffs:
        routine = make_routine(6, [1, 3], tradeoff=tradeoff, warmup_epochs=2)
        torch.nn.init.constant_(routine.network.gate.bias, -3)  # nobody leaves before the gates learn
        fit(routine, tmp_path, 10)
        costs.append(routine.results["operating_points"][0]["macs_fraction"])
    assert all(later <= earlier for earlier, later in pairwise(costs)), costs
    least = routine.results["exits"][0]["macs_fraction"]
    assert costs[0] > 1.2 * least
    assert costs[-2:] == pytest.approx([least] * 2, rel=1e-3)  # its gate costs a little too


@pytest.mark.slow
def test_the_first_of_many_exits_trains_like_the_first_of_three(tmp_path: Path) -> None:
    few, many = (
        fit(make_routine(24, exits, warmup_epochs=4, tradeoff=0.1), tmp_path, 10) for exits in ([0, 11], "all")
    )
    assert many.num_gates == 23
    found, wanted = (routine.results["exits"] for routine in (many, few))
    assert found[0]["nll"] < wanted[0]["nll"] + 0.1
    assert max(row["nll"] for row in found) < 2.7


@pytest.mark.parametrize("exits", [[1], [0, 1], "all"])
@pytest.mark.parametrize("depth", [4, 9])
def test_rescaled_losses_do_not_grow_with_many_exits(depth: int, exits: Any) -> None:
    routine = make_routine(depth, exits, rescale=True)
    extracted, labels = routine.extract(torch.randn(5, 1, 8, 8)), torch.arange(5)
    losses = cross_entropies(routine.network.exit_logits(extracted), labels)[:, :-1]
    found = routine.phase_loss("inference_modules", extracted, labels)
    torch.testing.assert_close(found, min(routine.num_gates, 5) * losses.mean())


@pytest.mark.parametrize(("tradeoff", "warns"), [(0.0, True), (0.003, True), (0.99, True), (1.0, True), (2.0, False)])
def test_a_lambda_that_only_breaks_ties_is_said_before_training(tradeoff: float, warns: bool, tmp_path: Path) -> None:
    routine = JointExits(make_network(), gate_objective="zero_one", tradeoff=tradeoff)
    limits = {"limit_train_batches": 1, "limit_val_batches": 1, "enable_checkpointing": False}
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, logger=False, enable_progress_bar=False, **limits)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(routine, datamodule=Digits(batch_size=16))
    said = [str(one.message) for one in found if "only breaks ties under zero_one" in str(one.message)]
    assert len(said) == warns
    if warns:
        enough = float(said[0].partition("below ")[2].split()[0])
        logits, labels = torch.randn(500, routine.num_gates + 1, 3), torch.randint(3, (500,))
        same, other = (make_targets(routine, logits, labels, value) for value in (0.0, 0.99 * enough))
        assert torch.equal(same, other)
        assert not torch.equal(same, make_targets(routine, logits, labels, 1.01 * enough))


def make_targets(routine: JointExits, logits: torch.Tensor, labels: torch.Tensor, tradeoff: float) -> torch.Tensor:
    routine.tradeoff = tradeoff
    return routine.targets(logits, labels)
